"""Leases on a digest: any number of uploads share a digest, garbage collection needs it alone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from serving.errors import StoreError
from serving.store.connection import Connection

LEASE_SECONDS = 600.0
_PATIENCE_SECONDS = 30.0
_UPLOADER = "http"
"""The one holder for all uploads by chunks, since each chunk of an upload may arrive at another process."""
_COLLECTOR = "gc"


class Leases:
    """Leases keep uploads of a digest and its collection by `Garbage` apart. Each ends after `LEASE_SECONDS`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def shared(self, digest: str) -> Iterator[Callable[[], object]]:
        """Keep a digest from being collected during the block. Any number of callers may hold the digest at once.

        Yields:
            A function that renews the lease.

        Raises:
            StoreError: the digest was still being collected after `LEASE_SECONDS`.
        """
        holder = uuid.uuid4().hex
        self._wait_for(digest, holder, LEASE_SECONDS)
        try:
            yield partial(self._take, digest, holder)
        finally:
            self._drop(digest, holder)

    def hold_for_upload(self, digest: str) -> None:
        """Keep a digest from being collected for `LEASE_SECONDS` from now, so that an upload lasts until its next step.

        This lease is never dropped, because another client's upload of the same digest may rely on it.

        Raises:
            StoreError: the digest was still being collected after 30 seconds.
        """
        self._wait_for(digest, _UPLOADER, _PATIENCE_SECONDS)

    @contextmanager
    def alone(self, digest: str) -> Iterator[bool]:
        """Hold a digest for its collection during the block: uploads of the digest wait.

        Yields:
            Whether the digest is held; False where an upload or another collection holds it.
        """
        taken = self._take(digest, _COLLECTOR)
        try:
            yield taken
        finally:
            if taken:
                self._drop(digest, _COLLECTOR)

    def end_of_uploads(self, digest: str) -> int | None:
        """The Unix second, by the store's clock, in which the last lease of an upload ends; None without such a lease.

        Leases that have ended count until the next one is taken.
        """
        with self._connection.store_errors:
            leases = self._connection.client.zrange(self._key(digest), 0, -1, withscores=True)
        return max((int(end) for holder, end in leases if holder != _COLLECTOR.encode()), default=None)

    def _wait_for(self, digest: str, holder: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._take(digest, holder):
            if time.monotonic() > deadline:
                raise StoreError(f"delta {digest} is being collected by gc; try again")
            time.sleep(0.05)

    def _take(self, digest: str, holder: str) -> bool:
        return self._lease("take", digest, holder)

    def _drop(self, digest: str, holder: str) -> None:
        self._lease("drop", digest, holder)

    def _lease(self, action: str, digest: str, holder: str) -> bool:
        return bool(self._connection.run("lease", [self._key(digest)], action, holder, LEASE_SECONDS))

    def _key(self, digest: str) -> str:
        return self._connection.control_key("upload", digest)

"""Leases on a digest: uploads share it, `gc` wants it alone."""

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
"""One holder for all uploads by chunks: who sends a chunk may be another process than who sent the one before."""
_COLLECTOR = "gc"


class Leases:
    """Holding a digest against `gc`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextmanager
    def shared(self, digest: str) -> Iterator[Callable[[], object]]:
        """Hold off `gc` for one digest; many may hold it at once. Yields what renews the lease."""
        holder = uuid.uuid4().hex
        self._wait_for(digest, holder, LEASE_SECONDS)
        try:
            yield partial(self._take, digest, holder)
        finally:
            self._drop(digest, holder)

    def hold_for_upload(self, digest: str) -> None:
        """Hold off `gc` for `LEASE_SECONDS` from now, so that what is uploaded lasts until the next step.

        Nobody drops this lease: another client's upload of the same digest may count on it.
        """
        self._wait_for(digest, _UPLOADER, _PATIENCE_SECONDS)

    @contextmanager
    def alone(self, digest: str) -> Iterator[bool]:
        """Hold a digest as `gc` does, and hold off all uploads of it. Yields False where an upload holds it."""
        taken = self._take(digest, _COLLECTOR)
        try:
            yield taken
        finally:
            if taken:
                self._drop(digest, _COLLECTOR)

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
        key = self._connection.control_key("upload", digest)
        return bool(self._connection.run("lease", [key], action, holder, LEASE_SECONDS))

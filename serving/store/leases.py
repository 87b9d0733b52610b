"""Leases on a digest: uploads share it, `gc` wants it alone."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import StoreError
from serving.store.connected import Connected

LEASE_SECONDS = 600.0
_PATIENCE_SECONDS = 30.0
_UPLOADER = "http"
"""One holder for all uploads by chunks: who sends a chunk may be another process than who sent the one before."""


class Leases(Connected):
    """Holding a digest against `gc`."""

    @contextmanager
    def _leased(self, digest: str) -> Iterator[str]:
        """Hold off `gc` for one digest; many may hold it at once."""
        token = uuid.uuid4().hex
        self._take(digest, token, LEASE_SECONDS)
        try:
            yield token
        finally:
            self._lease("drop", digest, token)

    def _hold_for_upload(self, digest: str) -> None:
        """Hold off `gc` for `LEASE_SECONDS` from now, so that what is uploaded lasts until the next step.

        Nobody drops this lease: another client's upload of the same digest may count on it.
        """
        self._take(digest, _UPLOADER, _PATIENCE_SECONDS)

    def _take(self, digest: str, holder: str, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._lease("take", digest, holder):
            if time.monotonic() > deadline:
                raise StoreError(f"delta {digest} is being collected by gc; try again")
            time.sleep(0.05)

    def _lease(self, action: str, digest: str, holder: str) -> bool:
        return bool(self._run("lease", [self._control("upload", digest)], action, holder, LEASE_SECONDS))

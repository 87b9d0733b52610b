"""Uploads that count for nobody but who sent them.

Whoever has all bytes of a delta has it. Whoever has its digest alone, from a log or a metric, must learn nothing by it:
neither that the store holds the delta, nor that others are sending it. So these chunks lie apart from everybody
else's, what the store holds is not looked at, and no lease is taken, which would wait for `gc` where there is something
to collect: they expire by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serving.names import check_digest
from serving.store.leases import LEASE_SECONDS
from serving.store.uploads import Upload, Uploads, check_chunk

if TYPE_CHECKING:
    from ken_core import DeltaFile

COMMITTED_SECONDS = 60
"""How long chunks of a delta that is complete stay: another commit may be reading them, or have to be repeated."""


class OwnUploads(Uploads):
    """As `Uploads`, for one owner: any name that nobody else has."""

    def put_own_chunk(self, owner: str, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i` for `LEASE_SECONDS` after the owner's latest; as `put_chunk` for the rest."""
        check_chunk(digest, i, data)
        self._run("chunk", [self._own_parts(owner, digest)], i, data, int(LEASE_SECONDS))

    def own_upload(self, owner: str, digest: str) -> Upload:
        """What the owner has sent of a delta, kept for `LEASE_SECONDS` more. It is never complete before its commit."""
        parts = self._own_parts(owner, check_digest(digest))
        self._expire(parts, int(LEASE_SECONDS))
        return self._progress(digest, parts)

    def commit_own_upload(self, owner: str, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
        """Make a delta of the owner's chunks, as `commit_upload` does, and do so whether the store holds it or not.

        Raises:
            InvalidInputError: as `commit_upload`; the same whatever others have sent or published.
        """
        parts = self._own_parts(owner, check_digest(digest))
        hold = partial(self._expire, parts, int(LEASE_SECONDS))
        with self._assembled(digest, parts, check, folder, hold) as file, self._leased(digest):
            self.put(file)
            self._hold_for_upload(digest)
        self._expire(parts, COMMITTED_SECONDS)

    def _expire(self, parts: str, seconds: int) -> None:
        with self._with:
            self._client.expire(parts, seconds)

    def _own_parts(self, owner: str, digest: str) -> str:
        return f"ken:{self._namespace}:own-parts:{{{digest}}}:{owner}"

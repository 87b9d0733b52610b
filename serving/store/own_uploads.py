"""Uploads that count only for the client that sent them.

A client that sends all bytes of a delta proves that it has the delta. A client that knows only the digest, from a log
or a metric, must learn nothing: neither that the store holds the delta, nor that another client is sending it. So each
owner's chunks lie in a hash of their own, and these methods do not look at what the store holds. They take no lease
for chunks either: taking one waits while `Garbage` collects the digest, which shows that there was something to
collect. Instead, the chunks expire.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from serving.names import check_digest
from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.leases import Leases
from serving.store.parts import Parts, Upload, check_chunk

if TYPE_CHECKING:
    from ken_core import DeltaFile

COMMITTED_SECONDS = 60
"""How long chunks stay after their commit: another commit may be reading them, or a client may repeat its commit."""


class OwnUploads:
    """Like `Uploads`, but each owner has uploads of its own. An owner is any name that identifies one client."""

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas

    def put_chunk(self, owner: str, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i`, counted from 0, of a delta, until `LEASE_SECONDS` after the owner's latest chunk of it.

        Raises:
            InvalidInputError, TooLargeError, StoreFullError: as `Uploads.put_chunk`.
        """
        check_chunk(digest, i, data)
        self._parts(owner, digest).put(i, data)

    def progress(self, owner: str, digest: str) -> Upload:
        """What the owner has sent of a delta; the chunks are kept for `LEASE_SECONDS` more. Never says `complete`."""
        parts = self._parts(owner, check_digest(digest))
        parts.keep()
        return parts.upload()

    def commit(self, owner: str, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
        """Make a delta of the owner's chunks, as `Uploads.commit` does, even where the store already holds the delta.

        Raises:
            InvalidInputError, StoreFullError: as `Uploads.commit`, whatever other clients have sent or published.
        """
        parts = self._parts(owner, check_digest(digest))
        with parts.assembled(check, folder, parts.keep) as file, self._leases.shared(digest):
            self._deltas.put(file)
            self._leases.hold_for_upload(digest)
        parts.keep(COMMITTED_SECONDS)

    def _parts(self, owner: str, digest: str) -> Parts:
        return Parts(self._connection, self._connection.digest_key("own-parts", digest, owner), digest)

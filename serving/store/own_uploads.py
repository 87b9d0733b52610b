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
from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.leases import LEASE_SECONDS, Leases
from serving.store.parts import Parts, Upload, check_chunk

if TYPE_CHECKING:
    from ken_core import DeltaFile

COMMITTED_SECONDS = 60
"""How long chunks of a delta that is complete stay: another commit may be reading them, or have to be repeated."""


class OwnUploads:
    """As `Uploads`, for one owner: any name that nobody else has."""

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas

    def put_chunk(self, owner: str, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i` for `LEASE_SECONDS` after the owner's latest; as `Uploads.put_chunk` for the rest."""
        check_chunk(digest, i, data)
        self._connection.run("chunk", [self._key(owner, digest)], i, data, int(LEASE_SECONDS))

    def progress(self, owner: str, digest: str) -> Upload:
        """What the owner has sent of a delta, kept for `LEASE_SECONDS` more. It is never complete before its commit."""
        key = self._key(owner, check_digest(digest))
        self._expire(key, int(LEASE_SECONDS))
        return Parts(self._connection, key, digest).upload()

    def commit(self, owner: str, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
        """Make a delta of the owner's chunks, as `Uploads.commit` does, and do so whether the store holds it or not.

        Raises:
            InvalidInputError: as `Uploads.commit`; the same whatever others have sent or published.
        """
        key = self._key(owner, check_digest(digest))
        hold = partial(self._expire, key, int(LEASE_SECONDS))
        parts = Parts(self._connection, key, digest)
        with parts.assembled(check, folder, hold) as file, self._leases.shared(digest):
            self._deltas.put(file)
            self._leases.hold_for_upload(digest)
        self._expire(key, COMMITTED_SECONDS)

    def _expire(self, key: str, seconds: int) -> None:
        with self._connection.store_errors:
            self._connection.client.expire(key, seconds)

    def _key(self, owner: str, digest: str) -> str:
        return self._connection.digest_key("own-parts", digest, owner)

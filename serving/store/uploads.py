"""Uploads in chunks that may stop and go on: nothing is visible until all of it was checked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import InvalidInputError
from serving.names import check_digest
from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.leases import Leases
from serving.store.parts import Parts, Upload, check_chunk

if TYPE_CHECKING:
    from ken_core import DeltaFile


class Uploads:
    """A delta in, chunk by chunk, from whoever cannot reach the store."""

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas

    def put_chunk(self, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i`, from 0, of a delta. Repeatable, in any order; ignored once the delta is complete.

        Holds `gc` off the digest for `LEASE_SECONDS`.

        Raises:
            InvalidInputError: no digest, no position of a chunk, or an empty chunk.
            TooLargeError: more than `CHUNK_BYTES`.
        """
        check_chunk(digest, i, data)
        self._leases.hold_for_upload(digest)
        if not self._deltas.has(digest):
            with self._connection.store_errors:
                self._connection.client.hset(self._key(digest), str(i), data)

    def progress(self, digest: str) -> Upload:
        """What is there of a delta; holds `gc` off it for `LEASE_SECONDS`, so that it can be counted on."""
        self._leases.hold_for_upload(check_digest(digest))
        extent = self._deltas.extent(digest)
        if extent is None:
            return self._parts(digest).upload()
        size, count = extent
        return Upload(digest, tuple(range(count)), size, complete=True)

    def commit(self, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
        """Make a delta of the chunks 0 to n - 1, if that is what they are. Nothing to do where it is complete.

        `gc` leaves the delta alone for `LEASE_SECONDS` more: the time to publish it. The store holds it twice for
        a moment.

        Args:
            check: opens a file as a delta; whatever it raises refuses the upload.
            folder: a folder with room for the file meanwhile.

        Raises:
            InvalidInputError: chunks are missing, or their sha256 is not the digest: all are dropped then, because
                any of them may be the wrong one.
        """
        hold = partial(self._leases.hold_for_upload, check_digest(digest))
        hold()
        parts = self._parts(digest)
        try:
            with self._leases.shared(digest):
                if not self._deltas.has(digest):
                    with parts.assembled(check, folder, hold) as file:
                        self._deltas.put(file)
                parts.drop()
                hold()
        except InvalidInputError:
            if not self._deltas.has(digest):  # else another commit of the same chunks took them, and all is well
                raise

    def drop(self, digest: str) -> None:
        """Forget the chunks of a delta."""
        self._parts(digest).drop()

    def _parts(self, digest: str) -> Parts:
        return Parts(self._connection, self._key(digest), digest)

    def _key(self, digest: str) -> str:
        return self._connection.digest_key("parts", digest)

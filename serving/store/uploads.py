"""Uploads in chunks, which may stop and go on later. A delta becomes visible only after all of it was checked."""

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
    """Uploads for clients that cannot reach the store themselves. All clients share the upload of a digest."""

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas

    def put_chunk(self, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i`, counted from 0, of a delta. Chunks may come in any order, and more than once.

        A chunk of a complete delta is ignored. The digest is kept from being collected for `LEASE_SECONDS`, and the
        chunks expire then.

        Raises:
            StoreFullError: the store has no room; all chunks of the upload are dropped.
            InvalidInputError: not a digest, not a chunk's position, or an empty chunk.
            TooLargeError: more than `CHUNK_BYTES` bytes.
        """
        check_chunk(digest, i, data)
        self._leases.hold_for_upload(digest)
        if not self._deltas.has(digest):
            self._parts(digest).put(i, data)

    def progress(self, digest: str) -> Upload:
        """How far the upload of a delta has come.

        The digest and its chunks are kept for `LEASE_SECONDS`, so that a client may rely on the answer.
        """
        self._hold(check_digest(digest))
        extent = self._deltas.extent(digest)
        if extent is None:
            return self._parts(digest).upload()
        size, count = extent
        return Upload(digest, tuple(range(count)), size, complete=True)

    def commit(self, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
        """Make a delta of the chunks 0 to n - 1. Does nothing where the store already holds the delta.

        The delta is kept from being collected for `LEASE_SECONDS`: the time to publish it. For a moment the store
        holds its bytes twice.

        Args:
            check: opens a file as a delta. Any error it raises refuses the upload.
            folder: a folder with room for the file.

        Raises:
            InvalidInputError: chunks are missing; or their sha256 is not the digest, and all chunks are dropped,
                because any of them may be the wrong one.
            StoreFullError: the store has no room; all chunks of the upload are dropped.
        """
        hold = partial(self._hold, check_digest(digest))
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
            if not self._deltas.has(digest):  # otherwise another commit took the same chunks and made the delta
                raise

    def stored_bytes(self, digest: str) -> int:
        """Bytes of the chunks of an upload."""
        return self._parts(digest).upload().bytes

    def drop(self, digest: str) -> None:
        """Delete the chunks of an upload."""
        self._parts(digest).drop()

    def _hold(self, digest: str) -> None:
        self._leases.hold_for_upload(digest)
        self._parts(digest).keep()

    def _parts(self, digest: str) -> Parts:
        return Parts(self._connection, self._key(digest), digest)

    def _key(self, digest: str) -> str:
        return self._connection.digest_key("parts", digest)

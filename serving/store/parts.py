"""The chunks of an upload that is not complete, and the file they make together.

The chunks of an upload wait in a hash of their own. Readers never fetch from there, so no upload can damage a delta.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ken_core.errors import KenError
from serving.errors import (
    DeadlineError,
    InvalidInputError,
    NoRoomError,
    OverloadedError,
    StoreFullError,
    TooLargeError,
    UnavailableError,
)
from serving.names import check_digest
from serving.store.connection import Connection
from serving.store.deltas import CHUNK_BYTES
from serving.store.full import full_store
from serving.store.leases import LEASE_SECONDS

if TYPE_CHECKING:
    from ken_core import DeltaFile

MOST_CHUNKS = 1 << 14
"""Most chunks of one delta: 64 GiB if all are full."""


@dataclass(frozen=True)
class Upload:
    """How far an upload has come."""

    digest: str
    received: tuple[int, ...]
    """Positions of the chunks that the store has, in order."""
    bytes: int
    """Of these chunks together."""
    complete: bool
    """Whether the store holds the delta, so that nothing needs to be sent."""


class Parts:
    """The chunks of one upload.

    Args:
        key: name of the hash that holds the chunks by position.
        digest: sha256 that the whole file must have.
    """

    def __init__(self, connection: Connection, key: str, digest: str) -> None:
        self._connection = connection
        self._key = key
        self._digest = digest

    def put(self, i: int, data: bytes) -> None:
        """Keep a chunk. All chunks of the upload expire `LEASE_SECONDS` after the latest one.

        Raises:
            StoreFullError: the store has no room. All chunks are dropped, to leave room for other uploads.
        """
        with self._dropped_if_full(f"chunk {i} of delta {self._digest}", len(data)):
            self._connection.run("chunk", [self._key], i, data, int(LEASE_SECONDS))

    def keep(self, seconds: float = LEASE_SECONDS) -> None:
        """Let the chunks expire after so many seconds from now."""
        with self._connection.store_errors:
            self._connection.client.expire(self._key, int(seconds))

    def upload(self) -> Upload:
        """How far the upload has come."""
        with self._connection.store_errors:
            received = self._received()
            pipe = self._connection.client.pipeline(transaction=False)
            for i in received:
                pipe.hstrlen(self._key, str(i))
            sizes = pipe.execute() if received else []
        return Upload(self._digest, received, sum(sizes), complete=False)

    @contextmanager
    def assembled(
        self, check: Callable[[Path], DeltaFile], folder: Path, hold: Callable[[], None]
    ) -> Iterator[DeltaFile]:
        """The file that the chunks make together. It is deleted after the block.

        Args:
            check: opens a file as a delta. Any error it raises refuses the upload.
            folder: a folder with room for the file.
            hold: called before each chunk is read; keeps the chunks for `LEASE_SECONDS` more.

        Raises:
            InvalidInputError: chunks are missing; or the file's sha256 is not the digest, and all chunks are dropped.
            NoRoomError: the folder does not take the file. The chunks stay.
            StoreFullError: raised in the block. All chunks are dropped.
            KenError: from `check`. All chunks are dropped, unless `check` had no time or room to judge the file.
        """
        path = folder / f".{self._digest}.{uuid.uuid4().hex}.partial"
        try:
            with self._room_for_file():
                self._assemble(path, hold)
            file = self._checked(path, check)
            with self._dropped_if_full(f"delta {self._digest}", file.size):
                yield file
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Delete all chunks."""
        with self._connection.store_errors:
            self._connection.client.delete(self._key)

    @contextmanager
    def _dropped_if_full(self, what: str, needed: int) -> Iterator[None]:
        try:
            with full_store(self._connection.where, what, needed):
                yield
        except StoreFullError:
            self.drop()
            raise

    @contextmanager
    def _room_for_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NoRoomError(
                f"upload {self._digest} cannot be checked, for its file cannot be written: {error.strerror or error}; "
                "all chunks are kept: make room on the server's disk, or make it writable, then commit again"
            ) from error

    def _assemble(self, path: Path, hold: Callable[[], None]) -> None:
        received = self._received()
        missing = sorted(set(range(max(received, default=0) + 1)) - set(received))
        sha, size = hashlib.sha256(), 0
        with path.open("wb") as out:
            for i in received if not missing else ():
                hold()
                with self._connection.store_errors:
                    data = self._connection.client.hget(self._key, str(i))
                if data is None:
                    missing.append(i)
                    break
                sha.update(data)
                size += out.write(data)
        if missing:
            few = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            raise InvalidInputError(f"upload {self._digest} lacks chunk {few}; send what is missing, then commit again")
        if sha.hexdigest() != self._digest:
            self.drop()
            raise InvalidInputError(
                f"upload {self._digest}: its {len(received)} chunks, {size} bytes, have the sha256 {sha.hexdigest()}, "
                "so one is wrong or the last are missing; they were dropped, send all of them again"
            )

    def _checked(self, path: Path, check: Callable[[Path], DeltaFile]) -> DeltaFile:
        try:
            return check(path)
        except (DeadlineError, OverloadedError, UnavailableError):
            raise  # the file was not judged: the same chunks may be committed again
        except KenError:
            self.drop()  # the bytes are those of the digest, so sending them again would not help
            raise

    def _received(self) -> tuple[int, ...]:
        with self._connection.store_errors:
            return tuple(sorted(int(i) for i in self._connection.client.hkeys(self._key)))


def check_chunk(digest: str, i: int, data: bytes) -> None:
    """Check a chunk before the store is asked anything.

    Raises:
        InvalidInputError: not a digest, not a chunk's position, or an empty chunk.
        TooLargeError: more than `CHUNK_BYTES` bytes.
    """
    check_digest(digest)
    if not 0 <= i < MOST_CHUNKS:
        raise InvalidInputError(f"chunk {i}: expected a position from 0 to {MOST_CHUNKS - 1}")
    if not data:
        raise InvalidInputError(f"chunk {i} of {digest} is empty; send its bytes")
    if len(data) > CHUNK_BYTES:
        raise TooLargeError(f"chunk {i} of {digest} has {len(data)} bytes; send at most {CHUNK_BYTES} at once")

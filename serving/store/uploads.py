"""Uploads in chunks that may stop and go on: nothing is visible until all of it was checked.

Chunks wait in a hash of their own, apart from what readers fetch, so that whoever may upload can damage no delta.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ken_core.errors import KenError
from serving.errors import DeadlineError, InvalidInputError, OverloadedError, TooLargeError, UnavailableError
from serving.names import check_digest
from serving.store.deltas import CHUNK_BYTES, Deltas

if TYPE_CHECKING:
    from ken_core import DeltaFile

MOST_CHUNKS = 1 << 14
"""64 GiB in full chunks."""


@dataclass(frozen=True)
class Upload:
    """How far an upload has come."""

    digest: str
    received: tuple[int, ...]
    """Positions of the chunks that are there, in order."""
    bytes: int
    complete: bool
    """The store holds the delta: nothing needs to be sent."""


class Uploads(Deltas):
    """A delta in, chunk by chunk, from whoever cannot reach the store."""

    def put_chunk(self, digest: str, i: int, data: bytes) -> None:
        """Keep chunk `i`, from 0, of a delta. Repeatable, in any order; ignored once the delta is complete.

        Holds `gc` off the digest for `LEASE_SECONDS`.

        Raises:
            InvalidInputError: no digest, no position of a chunk, or an empty chunk.
            TooLargeError: more than `CHUNK_BYTES`.
        """
        check_chunk(digest, i, data)
        self._hold_for_upload(digest)
        if not self.has(digest):
            with self._with:
                self._client.hset(self._parts(digest), str(i), data)

    def uploaded(self, digest: str) -> Upload:
        """What is there of a delta; holds `gc` off it for `LEASE_SECONDS`, so that it can be counted on."""
        self._hold_for_upload(check_digest(digest))
        with self._with:
            size, count = self._client.hmget(self._delta(digest), "size", "count")
            if size is not None and count is not None:
                return Upload(digest, tuple(range(int(count))), int(size), complete=True)
        return self._progress(digest, self._parts(digest))

    def commit_upload(self, digest: str, check: Callable[[Path], DeltaFile], folder: Path) -> None:
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
        self._hold_for_upload(check_digest(digest))
        parts = self._parts(digest)
        try:
            with self._leased(digest):
                if not self.has(digest):
                    with self._assembled(digest, parts, check, folder, partial(self._hold_for_upload, digest)) as file:
                        self.put(file)
                self._drop(parts)
                self._hold_for_upload(digest)
        except InvalidInputError:
            if not self.has(digest):  # else another commit of the same chunks took them, and all is well
                raise

    def _progress(self, digest: str, parts: str) -> Upload:
        with self._with:
            received = self._received(parts)
            pipe = self._client.pipeline(transaction=False)
            for i in received:
                pipe.hstrlen(parts, str(i))
            sizes = pipe.execute() if received else []
        return Upload(digest, received, sum(sizes), complete=False)

    @contextmanager
    def _assembled(
        self, digest: str, parts: str, check: Callable[[Path], DeltaFile], folder: Path, hold: Callable[[], None]
    ) -> Iterator[DeltaFile]:
        """The file that chunks make, while it is needed. Chunks that make none are dropped.

        Args:
            hold: keeps the chunks for `LEASE_SECONDS` more.
        """
        path = folder / f".{digest}.{uuid.uuid4().hex}.partial"
        try:
            self._assemble(digest, parts, path, hold)
            yield self._checked(parts, path, check)
        finally:
            path.unlink(missing_ok=True)

    def _assemble(self, digest: str, parts: str, path: Path, hold: Callable[[], None]) -> None:
        received = self._received(parts)
        missing = sorted(set(range(max(received, default=0) + 1)) - set(received))
        sha, size = hashlib.sha256(), 0
        with path.open("wb") as out:
            for i in received if not missing else ():
                hold()
                with self._with:
                    data = self._client.hget(parts, str(i))
                if data is None:
                    missing.append(i)
                    break
                sha.update(data)
                size += out.write(data)
        if missing:
            few = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
            raise InvalidInputError(f"upload {digest} lacks chunk {few}; send what is missing, then commit again")
        if sha.hexdigest() != digest:
            self._drop(parts)
            raise InvalidInputError(
                f"upload {digest}: its {len(received)} chunks, {size} bytes, have the sha256 {sha.hexdigest()}, so one "
                "is wrong or the last are missing; they were dropped, send all of them again"
            )

    def _checked(self, parts: str, path: Path, check: Callable[[Path], DeltaFile]) -> DeltaFile:
        try:
            return check(path)
        except (DeadlineError, OverloadedError, UnavailableError):
            raise  # nothing is known of it yet
        except KenError:
            self._drop(parts)  # these bytes are what was meant, so sending them again would not help
            raise

    def _received(self, parts: str) -> tuple[int, ...]:
        with self._with:
            return tuple(sorted(int(i) for i in self._client.hkeys(parts)))

    def _drop(self, parts: str) -> None:
        with self._with:
            self._client.delete(parts)


def check_chunk(digest: str, i: int, data: bytes) -> None:
    """Raises as `Uploads.put_chunk` says, before anything is asked of the store."""
    check_digest(digest)
    if not 0 <= i < MOST_CHUNKS:
        raise InvalidInputError(f"chunk {i}: expected a position from 0 to {MOST_CHUNKS - 1}")
    if not data:
        raise InvalidInputError(f"chunk {i} of {digest} is empty; send its bytes")
    if len(data) > CHUNK_BYTES:
        raise TooLargeError(f"chunk {i} of {digest} has {len(data)} bytes; send at most {CHUNK_BYTES} at once")

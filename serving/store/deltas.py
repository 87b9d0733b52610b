"""Deltas in the store: chunks, and the manifest that makes them visible."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from serving.errors import ConflictError, StoreError
from serving.store.connection import Connection
from serving.store.full import full_store
from serving.store.leases import LEASE_SECONDS, Leases

if TYPE_CHECKING:
    from ken_core import DeltaFile

CHUNK_BYTES = 4 << 20
"""Most bytes of one chunk."""
INCOMPLETE_SECONDS = int(LEASE_SECONDS)
"""How long the chunks of a delta that is not complete stay after the latest sign of its uploader."""
_REPEATS = 3
"""How often a delta is written again, if other uploads of it that fail delete its chunks."""


class Deltas:
    """Whole deltas, written and read."""

    def __init__(self, connection: Connection, leases: Leases) -> None:
        self._connection = connection
        self._leases = leases

    def put(self, file: DeltaFile, progress: Callable[[int], None] = lambda size: None) -> None:
        """Upload a delta under a lease. The manifest is written last and completes the delta. May be repeated.

        If it fails, its chunks are deleted, unless the delta was complete before or another upload completed it. Only
        bytes of the delta itself are written, so that a complete delta is at most repaired.

        Args:
            progress: called after each written chunk with the chunk's bytes.

        Raises:
            ConflictError: the file changed since it was opened.
            StoreFullError: the store has no room for the delta.
        """
        chunks = {self._chunk_key(file.digest, i): sha for i, sha in enumerate(_chunk_hashes(file))}
        full = full_store(self._connection.where, f"delta {file.digest}", file.size)
        with full, self._leases.shared(file.digest) as renew:
            try:
                for report in (progress, *[lambda size: None] * _REPEATS):
                    self._write(file, chunks, renew, report)
                    if self._completed(file, list(chunks)):
                        return
                raise StoreError(f"other uploads of delta {file.digest} kept failing beside this one; publish it again")
            except BaseException:
                with suppress(StoreError):  # the chunks expire
                    self._step("abandon", file.digest, list(chunks))
                raise

    def _write(
        self, file: DeltaFile, chunks: Mapping[str, bytes], renew: Callable[[], object], progress: Callable[[int], None]
    ) -> None:
        """Write the chunks, given with their hashes."""
        kept = time.monotonic()
        with file.path.open("rb") as stream:
            for key, sha in chunks.items():
                renew()
                if time.monotonic() - kept > INCOMPLETE_SECONDS / 2:
                    self._step("keep", file.digest, list(chunks), INCOMPLETE_SECONDS)
                    kept = time.monotonic()
                chunk = stream.read(CHUNK_BYTES)
                if hashlib.sha256(chunk).digest() != sha:
                    raise _changed(file)
                self._step("write", file.digest, [key], chunk, INCOMPLETE_SECONDS)
                progress(len(chunk))

    def _completed(self, file: DeltaFile, chunks: Sequence[str]) -> bool:
        """Make the delta visible; False where an upload of the same delta failed and deleted chunks meanwhile."""
        manifest = orjson.dumps(file.manifest.plain())
        return self._step("complete", file.digest, chunks, manifest, file.size) == 0

    def _step(self, action: str, digest: str, chunks: Sequence[str], *arguments: bytes | int) -> int:
        return int(self._connection.run("delta", [self._key(digest), *chunks], action, *arguments))

    def has(self, digest: str) -> bool:
        """Whether the store holds a complete delta of this digest."""
        with self._connection.store_errors:
            return bool(self._connection.client.exists(self._key(digest)))

    def fetch(self, digest: str, path: Path) -> None:
        """Write a delta to `path`. The file appears there only after its sha256 was compared with the digest.

        Raises:
            StoreError: the store does not hold the delta, or holds it damaged.
            OSError: the file cannot be written.
        """
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            with partial.open("wb") as out:
                self.copy(digest, out)
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def copy(self, digest: str, out: BinaryIO) -> None:
        """Write a delta to a new file. When this returns, its sha256 was compared with the digest.

        Raises:
            StoreError, OSError: as `fetch`. What was written is worth nothing.
        """
        extent = self.extent(digest)
        if extent is None:
            raise not_held(digest, self._connection.where)
        size, count = extent
        sha = hashlib.sha256()
        for i in range(count):
            with self._connection.store_errors:
                chunk = self._connection.client.get(self._chunk_key(digest, i))
            if chunk is None or out.tell() + len(chunk) > size:
                break
            sha.update(chunk)
            out.write(chunk)
        out.flush()
        if sha.hexdigest() != digest:
            raise StoreError(f"delta {digest} in the store at {self._connection.where} is damaged; publish it again")

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """A delta's manifest; None where the store does not hold the delta."""
        with self._connection.store_errors:
            raw = self._connection.client.hget(self._key(digest), "manifest")
        return orjson.loads(raw) if raw is not None else None

    def size(self, digest: str) -> int | None:
        """A delta's size in bytes; None where the store does not hold the delta."""
        with self._connection.store_errors:
            raw = self._connection.client.hget(self._key(digest), "size")
        return int(raw) if raw is not None else None

    def stored_bytes(self, digest: str) -> int:
        """Bytes that the store holds of a delta: all of them, or those of an upload that is not complete."""
        size = self.size(digest)
        if size is not None:
            return size
        with self._connection.store_errors:
            lengths = (self._connection.client.strlen(self._chunk_key(digest, i)) for i in count())
            return sum(takewhile(bool, lengths))

    def extent(self, digest: str) -> tuple[int, int] | None:
        """A delta's size in bytes and its number of chunks; None where the store does not hold the delta."""
        with self._connection.store_errors:
            size, count = self._connection.client.hmget(self._key(digest), "size", "count")
        return (int(size), int(count)) if size is not None and count is not None else None

    def delete(self, digest: str) -> None:
        """Delete a delta, or the chunks of an upload that never completed. The caller holds `Leases.alone`."""
        client = self._connection.client
        with self._connection.store_errors:
            client.delete(self._key(digest))
            for key in client.scan_iter(self._connection.digest_key("blob", digest, "*"), count=1000):
                client.delete(key)

    def _key(self, digest: str) -> str:
        return self._connection.digest_key("delta", digest)

    def _chunk_key(self, digest: str, i: int) -> str:
        return self._connection.digest_key("blob", digest, str(i))


def _chunk_hashes(file: DeltaFile) -> list[bytes]:
    """The sha256 of each chunk of a file whose own sha256 is the digest still."""
    whole, hashes = hashlib.sha256(), []
    with file.path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            whole.update(chunk)
            hashes.append(hashlib.sha256(chunk).digest())
    if whole.hexdigest() != file.digest:
        raise _changed(file)
    return hashes


def _changed(file: DeltaFile) -> ConflictError:
    return ConflictError(f"{file.path} changed since it was opened; open it again")


def not_held(digest: str, where: str) -> StoreError:
    """The error for a delta that the store does not hold.

    Args:
        where: the store, as `Connection.where` names it.
    """
    return StoreError(f"the store at {where} does not hold delta {digest}; publish it again")

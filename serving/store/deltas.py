"""Deltas in the store: chunks, and the manifest that makes them visible."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from serving.errors import ConflictError, StoreError
from serving.store.connection import Connection
from serving.store.leases import Leases

if TYPE_CHECKING:
    from ken_core import DeltaFile

CHUNK_BYTES = 4 << 20
"""Most bytes of one chunk."""


class Deltas:
    """Whole deltas, written and read."""

    def __init__(self, connection: Connection, leases: Leases) -> None:
        self._connection = connection
        self._leases = leases

    def put(self, file: DeltaFile, progress: Callable[[int], None] = lambda size: None) -> None:
        """Upload a delta under a lease. The manifest is written last and completes the delta. May be repeated.

        Args:
            progress: called after each written chunk with the chunk's bytes.

        Raises:
            ConflictError: the file changed since it was opened.
        """
        client = self._connection.client
        with self._connection.store_errors, self._leases.shared(file.digest) as renew:
            count = 0
            sha = hashlib.sha256()
            with file.path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    renew()
                    client.set(self._chunk_key(file.digest, count), chunk)
                    sha.update(chunk)
                    count += 1
                    progress(len(chunk))
            if sha.hexdigest() != file.digest:
                raise ConflictError(f"{file.path} changed since it was opened; open it again")
            manifest = orjson.dumps(file.manifest.plain())
            described = {"manifest": manifest, "size": file.size, "count": count}
            client.hset(self._key(file.digest), mapping=described)

    def has(self, digest: str) -> bool:
        """Whether the store holds a complete delta of this digest."""
        with self._connection.store_errors:
            return bool(self._connection.client.exists(self._key(digest)))

    def fetch(self, digest: str, path: Path) -> None:
        """Write a delta to `path`. The file appears there only after its sha256 was compared with the digest.

        Raises:
            StoreError: the store does not hold the delta, or holds it damaged.
        """
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        extent = self.extent(digest)
        if extent is None:
            raise not_held(digest, self._connection.where)
        size, count = extent
        sha = hashlib.sha256()
        try:
            with partial.open("wb") as out:
                for i in range(count):
                    with self._connection.store_errors:
                        chunk = self._connection.client.get(self._chunk_key(digest, i))
                    if chunk is None or out.tell() + len(chunk) > size:
                        break
                    sha.update(chunk)
                    out.write(chunk)
            if sha.hexdigest() != digest:
                raise StoreError(
                    f"delta {digest} in the store at {self._connection.where} is damaged; publish it again"
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

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


def not_held(digest: str, where: str) -> StoreError:
    """The error for a delta that the store does not hold.

    Args:
        where: the store, as `Connection.where` names it.
    """
    return StoreError(f"the store at {where} does not hold delta {digest}; publish it again")

"""Deltas in the store: chunks, and a manifest that makes them visible."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from serving.errors import ConflictError, StoreError
from serving.store.leases import Leases

if TYPE_CHECKING:
    from ken_core import DeltaFile

CHUNK_BYTES = 4 << 20


class Deltas(Leases):
    """Whole deltas in and out."""

    def put(self, file: DeltaFile, progress: Callable[[int], None] = lambda size: None) -> None:
        """Upload a delta under a lease; complete only once its manifest is there. Repeatable.

        Args:
            progress: called with the bytes of each chunk as it is written.
        """
        with self._with, self._leased(file.digest) as token:
            count = 0
            sha = hashlib.sha256()
            with file.path.open("rb") as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    self._lease("take", file.digest, token)
                    self._client.set(self._blob(file.digest, count), chunk)
                    sha.update(chunk)
                    count += 1
                    progress(len(chunk))
            if sha.hexdigest() != file.digest:
                raise ConflictError(f"{file.path} changed since it was opened; open it again")
            manifest = orjson.dumps(file.manifest.model_dump(mode="json"))
            described = {"manifest": manifest, "size": file.size, "count": count}
            self._client.hset(self._delta(file.digest), mapping=described)

    def has(self, digest: str) -> bool:
        with self._with:
            return bool(self._client.exists(self._delta(digest)))

    def fetch(self, digest: str, path: Path) -> None:
        """Write a delta to `path`; the file appears only once its sha256 was found right.

        Raises:
            StoreError: the store does not hold it whole.
        """
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        with self._with:
            size, count = self._client.hmget(self._delta(digest), "size", "count")
        if size is None or count is None:
            raise self._missing(digest)
        sha = hashlib.sha256()
        try:
            with partial.open("wb") as out:
                for i in range(int(count)):
                    with self._with:
                        chunk = self._client.get(self._blob(digest, i))
                    if chunk is None or out.tell() + len(chunk) > int(size):
                        break
                    sha.update(chunk)
                    out.write(chunk)
            if sha.hexdigest() != digest:
                raise StoreError(f"delta {digest} in the store at {self.where} is damaged; publish it again")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def manifest(self, digest: str) -> dict[str, Any] | None:
        """A stored delta's manifest, None where the store does not hold it."""
        with self._with:
            raw = self._client.hget(self._delta(digest), "manifest")
        return orjson.loads(raw) if raw is not None else None

    def size(self, digest: str) -> int | None:
        with self._with:
            raw = self._client.hget(self._delta(digest), "size")
        return int(raw) if raw is not None else None

    def _missing(self, digest: str) -> StoreError:
        return StoreError(f"the store at {self.where} does not hold delta {digest}; publish it again")

"""Freeing what no task has and no upload holds."""

from __future__ import annotations

import re

from serving.store.own_uploads import OwnUploads


class Garbage(OwnUploads):
    """Collecting deltas, and chunks that never became one."""

    def gc(self) -> tuple[int, int]:
        """Delete deltas that no task has as a version and no upload holds.

        Returns:
            How many deltas were deleted, and their bytes.
        """
        freed = count = 0
        for digest in self._digests():
            with self._with:
                if not self._lease("take", digest, "gc"):
                    continue
                try:
                    self._drop(self._parts(digest))
                    if self._referenced(digest):
                        continue
                    size = self.size(digest)
                    freed += size or 0
                    count += 1
                    self._client.delete(self._delta(digest))
                    for key in self._client.scan_iter(f"{self._blob_prefix(digest)}:*", count=1000):
                        self._client.delete(key)
                finally:
                    self._lease("drop", digest, "gc")
        return count, freed

    def _digests(self) -> set[str]:
        with self._with:
            found = set()
            for kind in ("delta", "blob", "parts"):
                for key in self._client.scan_iter(f"ken:{self._namespace}:{kind}:*", count=1000):
                    found |= set(re.findall(r"\{([0-9a-f]{64})\}", key.decode()))
            return found

    def _referenced(self, digest: str) -> bool:
        names = [n.decode() for n in self._client.smembers(self._control("tasks"))]
        return any(self._client.zscore(self._control("versions", n), digest) is not None for n in names)

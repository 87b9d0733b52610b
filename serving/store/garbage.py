"""Garbage collection: freeing deltas that no task has and no upload holds."""

from __future__ import annotations

import re

from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.leases import Leases
from serving.store.tasks import Tasks
from serving.store.uploads import Uploads


class Garbage:
    """Deltas without a task, and chunks of uploads that never completed."""

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas, uploads: Uploads, tasks: Tasks) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas
        self._uploads = uploads
        self._tasks = tasks

    def collect(self) -> tuple[int, int]:
        """Delete each delta that is no task's version, and the chunks of uploads, unless an upload holds the digest.

        Returns:
            The number of digests freed, and the bytes of their deltas. An upload that never completed counts 0 bytes.
        """
        freed = count = 0
        for digest in self._digests():
            with self._leases.alone(digest) as alone:
                if not alone:
                    continue
                self._uploads.drop(digest)
                if self._tasks.have_version(digest):
                    continue
                freed += self._deltas.size(digest) or 0
                count += 1
                self._deltas.delete(digest)
        return count, freed

    def _digests(self) -> set[str]:
        found = set()
        with self._connection.store_errors:
            for kind in ("delta", "blob", "parts"):
                for key in self._connection.client.scan_iter(self._connection.digest_keys(kind), count=1000):
                    found |= set(re.findall(r"\{([0-9a-f]{64})\}", key.decode()))
        return found

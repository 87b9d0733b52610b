"""Garbage collection: freeing deltas that no task has and no upload holds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.events import Events
from serving.store.leases import Leases
from serving.store.tasks import Tasks
from serving.store.uploads import Uploads


@dataclass(frozen=True)
class Collected:
    """What a collection freed, and what it left because uploads hold it.

    Attributes:
        deltas: digests freed.
        bytes: of their deltas, and of the chunks of uploads that never completed.
        held_deltas: digests that no task has, and that uploads hold.
        held_bytes: of these.
        held_until: the Unix second, by the store's clock, in which the last of their leases ends if no upload goes on;
            None where nothing is held.
    """

    deltas: int = 0
    bytes: int = 0
    held_deltas: int = 0
    held_bytes: int = 0
    held_until: int | None = None


class Garbage:
    """Deltas without a task, and chunks of uploads that never completed."""

    def __init__(
        self, connection: Connection, leases: Leases, deltas: Deltas, uploads: Uploads, tasks: Tasks, events: Events
    ) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas
        self._uploads = uploads
        self._tasks = tasks
        self._events = events

    def collect(self) -> Collected:
        """Delete each delta that is no task's version, and the chunks of uploads, unless an upload holds the digest."""
        versions = _Versions(self._tasks, self._events)
        freed, held, ends = list[int](), list[int](), list[int]()
        for digest in self._digests():
            with self._leases.alone(digest) as alone:
                if alone:
                    freed += self._free(digest, versions)
                    continue
            end = self._leases.end_of_uploads(digest)
            if end is not None and not versions.have(digest):
                held.append(self._bytes(digest))
                ends.append(end)
        return Collected(len(freed), sum(freed), len(held), sum(held), max(ends, default=None))

    def _free(self, digest: str, versions: _Versions) -> list[int]:
        """Free what no task has; returns its bytes, or nothing where a task has the delta."""
        found = [] if versions.have(digest) else [self._bytes(digest)]
        self._uploads.drop(digest)
        if found:
            self._deltas.delete(digest)
        return found

    def _bytes(self, digest: str) -> int:
        return self._deltas.stored_bytes(digest) + self._uploads.stored_bytes(digest)

    def _digests(self) -> set[str]:
        found = set()
        with self._connection.store_errors:
            for kind in ("delta", "blob", "parts"):
                for key in self._connection.client.scan_iter(self._connection.digest_keys(kind), count=1000):
                    found |= set(re.findall(r"\{([0-9a-f]{64})\}", key.decode()))
        return found


class _Versions:
    """The versions of all tasks, read again whenever the store has changed.

    Whoever holds a digest alone may rely on the answer while it is held: only a lease lets a publisher make the digest
    a version, so a publisher who did has changed the store before.
    """

    def __init__(self, tasks: Tasks, events: Events) -> None:
        self._tasks = tasks
        self._events = events
        self._read_at = (-1, "")
        self._digests = set[str]()

    def have(self, digest: str) -> bool:
        """Whether a delta is a version of any task."""
        if not self._events.is_at(*self._read_at):
            revision = self._events.revision()
            self._read_at = revision, self._events.marks([revision])[revision]
            self._digests = self._tasks.versions()
        return digest in self._digests

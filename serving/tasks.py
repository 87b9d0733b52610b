"""The task table a replica answers from: kept current from the store, kept on disk for when it is down."""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import orjson

from serving.errors import StoreError, UnavailableError, UnknownTaskError
from serving.store import Store, Table, Task

_log = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0
_RETRY_SECONDS = 0.5


class TaskTable:
    """Resolves task names to digests. Reads never wait for the store."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._table: Table | None = None

    @property
    def current(self) -> Table:
        """Raises `UnavailableError` before the first table was loaded."""
        if self._table is None:
            raise UnavailableError("the task table is not loaded yet; try again in a moment")
        return self._table

    def resolve(self, task: str, alias: str = "live", digest: str | None = None) -> str:
        """The digest an alias of a task points at, or the pinned one if it is one of the task's versions.

        Raises:
            UnknownTaskError: no such task, alias or version; names near it are suggested.
        """
        known = self.find(task)
        if digest is not None:
            if digest not in known.versions:
                raise UnknownTaskError(f"{digest!r} is no version of task {task!r}")
            return digest
        if alias not in known.aliases:
            have = ", ".join(sorted(known.aliases)) or "none"
            raise UnknownTaskError(f"task {task!r} has no alias {alias!r}; it has: {have}")
        return known.aliases[alias]

    def find(self, task: str) -> Task:
        """Raises `UnknownTaskError`; names near it are suggested."""
        known = self.current.tasks.get(task)
        if known is None:
            near = difflib.get_close_matches(task, self.current.tasks, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownTaskError(f"there is no task {task!r}{hint}")
        return known

    def replace(self, table: Table) -> None:
        """Take a newer table over and keep it on disk."""
        self._table = table
        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}.{threading.get_ident()}.partial")
        partial.write_bytes(orjson.dumps(asdict(table)))
        partial.replace(self._file)

    def load_from_disk(self) -> bool:
        """Take the last table this replica knew; False where there is none."""
        try:
            plain = orjson.loads(self._file.read_bytes())
            tasks = {n: Task(**{**t, "versions": tuple(t["versions"])}) for n, t in plain["tasks"].items()}
            self._table = Table(plain["revision"], tasks)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True


class TaskWatch:
    """A thread that follows the store's events. The stream is a hint: a gap in revisions rereads everything.

    Args:
        on_change: called on the watch's thread after the table changed, and when the store comes or goes.
    """

    def __init__(
        self,
        store: Store,
        table: TaskTable,
        replica: str,
        on_change: Callable[[bool], None] = lambda up: None,
    ) -> None:
        self._store = store
        self._table = table
        self._replica = replica
        self._on_change = on_change
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ken-tasks", daemon=True)
        self._cursor = "0"
        self.store_up = False

    def start(self) -> None:
        """Read the table once and follow it from then on.

        Raises:
            StoreError: the store is down and no table is on disk.
        """
        try:
            self._resync()
        except StoreError:
            if not self._table.load_from_disk():
                raise
            _log.warning("the store at %s is down; serving what the disk holds", self._store.where)
        self._thread.start()

    def stop(self) -> None:
        """End the thread at its next turn, and take this replica off the list that `Store.wait` reads."""
        self._stopping.set()
        try:
            self._store.retire(self._replica)
        except StoreError:
            return

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.store_up:
                    self._follow()
                else:
                    self._resync()
            except StoreError as error:
                if self.store_up and not self._stopping.is_set():
                    _log.warning("%s", error)
                    self.store_up = False
                    self._on_change(False)
                self._stopping.wait(_RETRY_SECONDS)
            except Exception:
                _log.exception("following the store failed; reading everything again")
                self.store_up = False
                self._stopping.wait(_RETRY_SECONDS)

    def _resync(self) -> None:
        self._cursor = self._store.last_event()
        self._take(self._store.table())

    def _follow(self) -> None:
        """Apply the next changes: the tasks named, if no revision between ours and theirs is missing."""
        events = self._store.events(self._cursor, _BLOCK_SECONDS)
        if self._stopping.is_set():
            return
        if not events:
            self._store.report(self._replica, self._table.current.revision)
            if self._store.revision() != self._table.current.revision:
                self._resync()
            return
        self._cursor = events[-1].id
        known = self._table.current.revision
        fresh = [e for e in events if e.revision > known]
        if [e.revision for e in fresh] != list(range(known + 1, known + 1 + len(fresh))):
            self._resync()
            return
        tasks = dict(self._table.current.tasks)
        for name in {e.task for e in fresh}:
            task = self._store.task(name)
            if task is None:
                tasks.pop(name, None)
            else:
                tasks[name] = task
        self._take(Table(fresh[-1].revision if fresh else known, tasks))

    def _take(self, table: Table) -> None:
        self._table.replace(table)
        if not self._stopping.is_set():
            self._store.report(self._replica, table.revision)
        self.store_up = True
        self._on_change(True)

"""The watch that follows the store and keeps a replica's table equal to the store's."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from serving.errors import StoreError, StoreFullError
from serving.store import KEYS_CHANGED, STORE_ADOPTED, Event, Store, Table
from serving.store.replicas import IN_TOUCH_SECONDS
from serving.tasks.succession import Succession, carry_over, succeed
from serving.tasks.table import TaskTable

_log = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0
_RETRY_SECONDS = 0.5


class TaskWatch:
    """A thread that follows the store's events. Events are a hint: after a gap in their revisions it reads everything.

    A store that does not continue what the table knows, because it was emptied or restored from a backup, does not
    replace the table: see `Succession`.

    Args:
        replica: the name under which it reports the revision it has seen.
        on_change: called with whether the store is up, after the table changed and when the store goes down or comes
            back. Runs on the watch's thread; the first time on the thread that calls `start`.
        address: ``host:port`` of this replica's metrics, for `Replicas.reports`.

    Attributes:
        store_up: whether the store answered the last time it was asked.
    """

    def __init__(
        self,
        store: Store,
        table: TaskTable,
        replica: str,
        on_change: Callable[[bool], None] = lambda up: None,
        address: str = "",
    ) -> None:
        self._store = store
        self._table = table
        self._replica = replica
        self._on_change = on_change
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ken-tasks", daemon=True)
        self._cursor = "0"
        self._read = Table(0, {})  # as the store was last read; the table that answers differs after another history
        self._has_read = False
        self._heard = time.monotonic()
        self._reporting = threading.Lock()  # no report may follow after this replica was taken off the list
        self.store_up = False

    @property
    def other_history(self) -> bool:
        """Whether the store has another past than the table."""
        return self._table.other_history

    @property
    def keeps(self) -> str | None:
        """The epoch of the earlier history that the table keeps to; None where it is the store's own."""
        return self._table.current.lineage.epoch if self.other_history else None

    @property
    def silent_seconds(self) -> float:
        """Seconds since the store last answered; 0 while that is too short to matter to anybody."""
        silent = time.monotonic() - self._heard
        return silent if silent >= IN_TOUCH_SECONDS else 0.0

    @property
    def notice(self) -> str:
        """What is wrong with the store in a word, for a header of answers; empty where nothing is."""
        silent = self.silent_seconds
        found = ["other-history"] * self.other_history + [f"unreachable; seconds={silent:.0f}"] * (silent > 0)
        return ", ".join(found)

    @property
    def trouble(self) -> str | None:
        """What is wrong with the store, and what to do; None where nothing is."""
        if self.other_history:
            return (
                f"the store was emptied, restored or exchanged: its revision {self._read.revision} has another past "
                f"than revision {self._table.current.revision} that this replica knew. The replica keeps the tasks "
                "and keys it knew, and takes over what is changed from now on. If what the store holds is right, run "
                "`ken adopt-store`"
            )
        if not self.store_up:
            return "the store does not answer; the replica answers by the tasks and keys it knew"
        if not self._table.saved:
            return (
                "the table of tasks and keys cannot be kept on disk, so the replica could not start while the store "
                "is down: make room in the data directory, or make it writable"
            )
        return None

    def start(self) -> None:
        """Read the table once, and follow its changes on the thread from then on.

        Raises:
            StoreError: the store is down and no table is on disk.
        """
        on_disk = self._table.load_from_disk()  # before the store is read, which may have lost keys that the disk knows
        try:
            self._resync()
        except StoreError:
            if not on_disk:
                raise
            self._heard -= IN_TOUCH_SECONDS  # nothing tells how old the copy on disk is
            _log.warning("the store at %s is down; serving what the disk holds", self._store.connection.where)
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end at its next turn, and take this replica off the list of `Replicas`."""
        self._stopping.set()
        with self._reporting, suppress(StoreError):
            self._store.replicas.retire(self._replica)

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
        was_down = not self.store_up
        self._cursor = self._store.events.last_id()
        found = self._store.tasks.table()
        known = self._table.current if self._table.loaded else None
        before = self.other_history
        succession = succeed(known, found, before, self._read if self._has_read else None)
        self._take(found, succession)
        self._tell_history(before)
        if was_down:  # after this replica's own report: a change in between would be waited for by nobody
            self._store.replicas.retire_dead()

    def _follow(self) -> None:
        """Read again what the next events name; read everything where the events lack a change."""
        events = self._store.events.after(self._cursor, _BLOCK_SECONDS)
        if self._stopping.is_set():
            return
        if not events:
            self._share_lock(self._table.current)
            self._report()
            if not self._store.events.is_at(self._read.revision, self._mark()):
                self._resync()
            return
        self._cursor = events[-1].id
        known = self._read.revision
        fresh = [e for e in events if e.revision > known]
        revisions = [e.revision for e in fresh]
        marks = self._store.events.marks([known, *revisions])
        lost = revisions != list(range(known + 1, known + 1 + len(fresh))) or marks.pop(known) != self._mark()
        if lost or any(e.task == STORE_ADOPTED for e in fresh):
            self._resync()
        elif fresh:
            read = replace(
                self._read_again(fresh), revision=revisions[-1], lineage=self._read.lineage.with_marks(marks)
            )
            carried = carry_over(self._table.current, self._read, read) if self.other_history else read
            self._take(read, Succession(carried, self.other_history))

    def _read_again(self, events: Sequence[Event]) -> Table:
        """The store as it was last read, with everything that the events name as the store has it now."""
        changed = {e.task for e in events}
        tasks, keys, locked = dict(self._read.tasks), self._read.keys, self._read.locked
        if KEYS_CHANGED in changed:
            keys, locked = self._store.keys.all(), self._store.keys.locked()
        for name in changed - {KEYS_CHANGED}:
            task = self._store.tasks.get(name)
            if task is None:
                tasks.pop(name, None)
            else:
                tasks[name] = task
        return replace(self._read, tasks=tasks, keys=keys, locked=locked)

    def _take(self, read: Table, succession: Succession) -> None:
        self._table.replace(succession.table, succession.other_history)
        self._read, self._has_read = read, True
        self._share_lock(read)
        self._report()
        self.store_up = True
        self._on_change(True)

    def _tell_history(self, before: bool) -> None:
        if self.other_history and not before:
            _log.error("%s: %s", self._store.connection.where, self.trouble)
        elif before and not self.other_history:
            _log.warning("this replica answers again by what the store at %s holds", self._store.connection.where)

    def _mark(self) -> str:
        return self._read.lineage.marks.get(self._read.revision, "")

    def _share_lock(self, table: Table) -> None:
        """Lock the store, and so every replica, where this replica knew an API key that the store does not know of."""
        if self._table.locked and not table.locked:
            _log.warning(
                "this replica has known API keys, the store at %s has not; locking it", self._store.connection.where
            )
            with suppress(StoreFullError):  # it is tried again with each report
                self._store.keys.lock(self._replica)

    def _report(self) -> None:
        with self._reporting:
            if not self._stopping.is_set():
                self._store.replicas.report(self._replica, self._read.revision, self._address, self.keeps)
                self._heard = time.monotonic()

"""The watch that follows the store and keeps a replica's table equal to the store's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from serving.errors import StoreError
from serving.store import KEYS_CHANGED, Store, Table
from serving.tasks.table import TaskTable

_log = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0
_RETRY_SECONDS = 0.5


class TaskWatch:
    """A thread that follows the store's events. Events are a hint: after a gap in their revisions it reads everything.

    Args:
        replica: the name under which it reports the revision it has seen.
        on_change: called with whether the store is up, after the table changed and when the store goes down or comes
            back. Runs on the watch's thread; the first time on the thread that calls `start`.
        address: ``host:port`` of this replica's metrics, for `Replicas.addresses`.

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
        self.store_up = False

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
            _log.warning("the store at %s is down; serving what the disk holds", self._store.connection.where)
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end at its next turn, and take this replica off the list of `Replicas`."""
        self._stopping.set()
        try:
            self._store.replicas.retire(self._replica)
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
        self._cursor = self._store.events.last_id()
        self._take(self._store.tasks.table())

    def _follow(self) -> None:
        """Read again what the next events name; read everything where the events lack a revision."""
        events = self._store.events.after(self._cursor, _BLOCK_SECONDS)
        if self._stopping.is_set():
            return
        if not events:
            self._share_lock(self._table.current)
            self._report()
            if self._store.events.revision() != self._table.current.revision:
                self._resync()
            return
        self._cursor = events[-1].id
        known = self._table.current.revision
        fresh = [e for e in events if e.revision > known]
        if [e.revision for e in fresh] != list(range(known + 1, known + 1 + len(fresh))):
            self._resync()
            return
        changed = {e.task for e in fresh}
        tasks, keys, locked = dict(self._table.current.tasks), self._table.current.keys, self._table.current.locked
        if KEYS_CHANGED in changed:
            keys, locked = self._store.keys.all(), self._store.keys.locked()
        for name in changed - {KEYS_CHANGED}:
            task = self._store.tasks.get(name)
            if task is None:
                tasks.pop(name, None)
            else:
                tasks[name] = task
        self._take(Table(fresh[-1].revision if fresh else known, tasks, keys, locked))

    def _take(self, table: Table) -> None:
        self._table.replace(table)
        self._share_lock(table)
        if not self._stopping.is_set():
            self._report()
        self.store_up = True
        self._on_change(True)

    def _share_lock(self, table: Table) -> None:
        """Lock the store, and so every replica, where this replica knew an API key that the store does not know of."""
        if self._table.locked and not table.locked:
            _log.warning(
                "this replica has known API keys, the store at %s has not; locking it", self._store.connection.where
            )
            self._store.keys.lock(self._replica)

    def _report(self) -> None:
        self._store.replicas.report(self._replica, self._table.current.revision, self._address)

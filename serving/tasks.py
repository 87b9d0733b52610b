"""The table of tasks and keys a replica answers from: kept current from the store, kept on disk for when it is down."""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from serving.errors import InvalidInputError, StoreError, UnavailableError, UnknownTaskError
from serving.routing.routes import check_route
from serving.routing.versions import is_pin, pinned, version_of
from serving.store import KEYS_CHANGED, Store, Table, Task

_log = logging.getLogger(__name__)

_BLOCK_SECONDS = 1.0
_RETRY_SECONDS = 0.5


_LOCKED = "A server with this data directory has known API keys; it stays locked without one. KEN_AUTH=off opens it.\n"


class TaskTable:
    """Resolves task names to digests. Reads never wait for the store.

    Attributes:
        locked: whether a key was ever known here. It lies in a file of its own beside the table, which a store that
            came back empty replaces.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock_file = file.with_suffix(".locked")
        self._table: Table | None = None
        self.locked = self._lock_file.exists()

    @property
    def current(self) -> Table:
        """Raises `UnavailableError` before the first table was loaded."""
        if self._table is None:
            raise UnavailableError("the task table is not loaded yet; try again in a moment")
        return self._table

    def resolve(
        self,
        task: str,
        version: str | None = None,
        digest: str | None = None,
        key: str | None = None,
        sees: Callable[[str], bool] = lambda name: True,
    ) -> str:
        """The digest that answers a request.

        Args:
            version: an alias, or a digest or how it begins. None: what the task's route chooses, without a route
                ``live``.
            digest: pins one of the task's versions, as a digest or its beginning. It comes before an alias or a route,
                and after a version that is named by its digest.
            key: requests of one key are routed alike; None: by chance.
            sees: which names may be suggested to whoever asks.

        Raises:
            UnknownTaskError: no such task, alias or version; names near it are suggested.
            InvalidInputError: several versions may be meant.
        """
        known = self.find(task, sees)
        if digest is not None and not (version is not None and is_pin(known, version)):
            return pinned(known, digest)
        if version is None:
            version = known.route.choose(key, task) if known.route else "live"
        return version_of(known, version)

    def shadow(self, task: str) -> str | None:
        """The digest that gets a copy of the requests the task's route decides about; None where there is none."""
        known = self.current.tasks.get(task)
        if known is None or known.route is None or known.route.shadow is None:
            return None
        try:
            return version_of(known, known.route.shadow)
        except UnknownTaskError:
            return None

    def find(self, task: str, sees: Callable[[str], bool] = lambda name: True) -> Task:
        """Raises `UnknownTaskError`; names near it that may be seen are suggested."""
        known = self.current.tasks.get(task)
        if known is None:
            near = difflib.get_close_matches(task, filter(sees, self.current.tasks), n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownTaskError(f"there is no task {task!r}{hint}")
        return known

    def replace(self, table: Table) -> None:
        """Take a newer table over and keep it on disk, for nobody else to read: it holds hashes of keys."""
        self._table = table
        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}.{threading.get_ident()}.partial")
        partial.unlink(missing_ok=True)
        with open(partial, "xb", opener=_private) as out:
            out.write(orjson.dumps(asdict(table)))
        partial.replace(self._file)
        if table.keys or table.locked:
            self.lock()

    def lock(self) -> None:
        """Remember, over restarts too, that there was a key."""
        if not self.locked:
            self.locked = True
            self._lock_file.write_text(_LOCKED)

    def load_from_disk(self) -> bool:
        """Take the last table this replica knew; False where there is none."""
        try:
            plain = orjson.loads(self._file.read_bytes())
            tasks = {name: _task(task) for name, task in plain["tasks"].items()}
            keys, locked = dict(plain.get("keys", {})), bool(plain.get("locked", False))
            self._table = Table(plain["revision"], tasks, keys, locked)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidInputError):
            return False
        if keys or locked:
            self.lock()
        return True


def _task(plain: dict[str, Any]) -> Task:
    """A task as `asdict` made it; before there were routes it had none."""
    route = plain.get("route")
    return Task(**plain | {"versions": tuple(plain["versions"]), "route": check_route(route) if route else None})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class TaskWatch:
    """A thread that follows the store's events. The stream is a hint: a gap in revisions rereads everything.

    Args:
        on_change: called on the watch's thread after the table changed, and when the store comes or goes.
        address: ``host:port`` of this replica's metrics, for `Replicas.addresses`.
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
        """Read the table once and follow it from then on.

        Raises:
            StoreError: the store is down and no table is on disk.
        """
        on_disk = self._table.load_from_disk()  # first, for the store may have lost the keys that it holds
        try:
            self._resync()
        except StoreError:
            if not on_disk:
                raise
            _log.warning("the store at %s is down; serving what the disk holds", self._store.connection.where)
        self._thread.start()

    def stop(self) -> None:
        """End the thread at its next turn, and take this replica off the list that `Replicas.wait` reads."""
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
        """Apply the next changes: the tasks named, if no revision between ours and theirs is missing."""
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
        """Tell the store, and so replicas whose disk is new, of a key that it does not know of, or not any more."""
        if self._table.locked and not table.locked:
            _log.warning(
                "keys were known here that the store at %s does not know; locking it", self._store.connection.where
            )
            self._store.keys.lock(self._replica)

    def _report(self) -> None:
        self._store.replicas.report(self._replica, self._table.current.revision, self._address)

"""The table of tasks and API keys a replica answers from, and its copy on disk for starts while the store is down."""

from __future__ import annotations

import difflib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from serving.errors import InvalidInputError, UnavailableError, UnknownTaskError
from serving.routing.routes import check_route
from serving.routing.versions import is_pin, pinned, version_of
from serving.store import Lineage, Table, Task

_log = logging.getLogger(__name__)

_LOCKED = "A server with this data directory had API keys once, so it asks for one for good. KEN_AUTH=off opens it.\n"


class TaskTable:
    """Resolves names of tasks to digests. Reads never wait for the store.

    Args:
        file: the table's copy on disk. Beside it lies a file with the suffix ``.locked`` once a key was known.
        store: names the store. A copy of another store's table is not used: whoever names another store wants its
            tasks, and its keys alone.

    Attributes:
        locked: whether any API key was ever known here. It has a file of its own, since the table's copy is replaced
            even by the table of a store that lost its data.
        saved: whether the disk took the latest copy.
        other_history: whether the store has another history than the table, see `Succession`.
    """

    def __init__(self, file: Path, store: str = "") -> None:
        self._file = file
        self._store = store
        self._lock_file = file.with_suffix(".locked")
        self._table: Table | None = None
        self.locked = self._lock_file.exists()
        self.saved = True
        self.other_history = False

    @property
    def loaded(self) -> bool:
        """Whether there is a table to answer from."""
        return self._table is not None

    @property
    def current(self) -> Table:
        """The latest table; raises `UnavailableError` before there is one."""
        if self._table is None:
            raise UnavailableError("the task table is not loaded yet; try again in a moment")
        return self._table

    @property
    def live(self) -> dict[str, str]:
        """The digest of each task's live version, by the task's name. Raises as `current`."""
        return {name: task.aliases["live"] for name, task in self.current.tasks.items() if "live" in task.aliases}

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
            version: an alias, or a digest or its first digits. None: the task's route chooses, or ``live`` where there
                is no route.
            digest: pins a version of the task, by its digest or its first digits. It overrules an alias and the route,
                but not a `version` that is a digest itself.
            key: the route treats all requests of one key alike. None: it chooses by chance.
            sees: whether the caller may see a task of this name; only such names are suggested.

        Raises:
            UnknownTaskError: no such task, alias or version. The message suggests similar names of tasks.
            InvalidInputError: several versions may be meant.
        """
        known = _find(self.current, task, sees)
        if digest is not None and not (version is not None and is_pin(known, version)):
            return pinned(known, digest)
        if version is None:
            version = known.route.choose(key, task) if known.route else "live"
        return version_of(known, version)

    def versions(self, named: Iterable[str], sees: Callable[[str], bool] = lambda name: True) -> list[str]:
        """The digests of several versions, all by the same state of the table.

        Args:
            named: ``task``, ``task@alias`` or ``task@digest``; a task alone is its live version.
            sees: as in `resolve`.

        Raises:
            UnknownTaskError, InvalidInputError: as `resolve`.
        """
        table = self.current
        pairs = (name.partition("@") for name in named)
        return [version_of(_find(table, task, sees), version or "live") for task, _, version in pairs]

    def shadow(self, task: str) -> str | None:
        """The digest that gets copies of the requests that the task's route splits; None where no version does."""
        known = self.current.tasks.get(task)
        if known is None or known.route is None or known.route.shadow is None:
            return None
        try:
            return version_of(known, known.route.shadow)
        except UnknownTaskError:
            return None

    def find(self, task: str, sees: Callable[[str], bool] = lambda name: True) -> Task:
        """The task of this name.

        Args:
            sees: as in `resolve`.

        Raises:
            UnknownTaskError: no such task. The message suggests similar names.
        """
        return _find(self.current, task, sees)

    def replace(self, table: Table, other_history: bool = False) -> None:
        """Answer from this table from now on, and keep it on disk if the disk takes it.

        Args:
            other_history: whether the store has another history than the table, see `Succession`.

        The file is readable by its owner alone, since it has hashes of API keys.
        """
        self._table, self.other_history = table, other_history
        plain = {"store": self._store, "other_history": other_history, **_plain(table)}
        if not self._save(self._file, orjson.dumps(plain, option=orjson.OPT_NON_STR_KEYS)):
            with suppress(OSError):  # by an outdated copy, a key that was revoked would be valid after a restart
                self._file.unlink()
        if table.keys or table.locked:
            self.lock()

    def lock(self) -> None:
        """Remember that there was an API key, over restarts too."""
        self.locked = True
        if not self._lock_file.exists():
            self._save(self._lock_file, _LOCKED.encode())

    def _save(self, file: Path, content: bytes) -> bool:
        """Write a file whole or not at all, and say which. A full disk must not stop a replica from answering."""
        partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.partial")
        try:
            partial.unlink(missing_ok=True)
            with open(partial, "xb", opener=_private) as out:
                out.write(content)
            partial.replace(file)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            if self.saved:
                _log.error(
                    "%s cannot be written: %s; without it, no start is possible while the store is down", file, error
                )
            self.saved = False
        else:
            self.saved = True
        return self.saved

    def load_from_disk(self) -> bool:
        """Answer from the copy on disk; False where there is none that can be read, or where it is of another store."""
        try:
            plain = orjson.loads(self._file.read_bytes())
            if plain.get("store", self._store) != self._store:
                _log.warning(
                    "%s is not used: it is of the store %s, not of %s", self._file, plain["store"], self._store
                )
                return False
            tasks = {name: _task(task) for name, task in plain["tasks"].items()}
            keys, locked = dict(plain.get("keys", {})), bool(plain.get("locked", False))
            self._table = Table(plain["revision"], tasks, keys, locked, _lineage(plain.get("lineage", {})))
            self.other_history = bool(plain.get("other_history", False))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, InvalidInputError):
            return False
        if keys or locked:
            self.lock()
        return True


def _find(table: Table, task: str, sees: Callable[[str], bool]) -> Task:
    known = table.tasks.get(task)
    if known is None:
        near = difflib.get_close_matches(task, filter(sees, table.tasks), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownTaskError(f"there is no task {task!r}{hint}")
    return known


def _task(plain: dict[str, Any]) -> Task:
    """A task from its JSON on disk. Copies written before there were routes have no ``route``."""
    route = plain.get("route")
    return Task(**plain | {"versions": tuple(plain["versions"]), "route": check_route(route) if route else None})


def _plain(table: Table) -> dict[str, Any]:
    lineage = table.lineage
    adoptions = sorted(lineage.adoptions)
    return {
        "revision": table.revision,
        "tasks": {name: asdict(task) for name, task in table.tasks.items()},
        "keys": table.keys,
        "locked": table.locked,
        "lineage": {"epoch": lineage.epoch, "marks": lineage.marks, "adoptions": adoptions},
    }


def _lineage(plain: dict[str, Any]) -> Lineage:
    """A lineage from its JSON on disk. Copies of earlier versions have none."""
    marks = {int(revision): mark for revision, mark in plain.get("marks", {}).items()}
    return Lineage(plain.get("epoch", ""), marks, frozenset(plain.get("adoptions", ())))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

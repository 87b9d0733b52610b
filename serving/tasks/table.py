"""The table of tasks and API keys a replica answers from, and its copy on disk for starts while the store is down."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from serving.errors import InvalidInputError, UnavailableError, UnknownTaskError
from serving.routing.routes import check_route
from serving.routing.versions import is_pin, pinned, version_of
from serving.store import Table, Task

_LOCKED = "A server with this data directory had API keys once, so it asks for one for good. KEN_AUTH=off opens it.\n"


class TaskTable:
    """Resolves names of tasks to digests. Reads never wait for the store.

    Args:
        file: the table's copy on disk. Beside it lies a file with the suffix ``.locked`` once a key was known.

    Attributes:
        locked: whether any API key was ever known here. It has a file of its own, since the table's copy is replaced
            even by the table of a store that lost its data.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock_file = file.with_suffix(".locked")
        self._table: Table | None = None
        self.locked = self._lock_file.exists()

    @property
    def current(self) -> Table:
        """The latest table; raises `UnavailableError` before there is one."""
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
        known = self.find(task, sees)
        if digest is not None and not (version is not None and is_pin(known, version)):
            return pinned(known, digest)
        if version is None:
            version = known.route.choose(key, task) if known.route else "live"
        return version_of(known, version)

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
        known = self.current.tasks.get(task)
        if known is None:
            near = difflib.get_close_matches(task, filter(sees, self.current.tasks), n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise UnknownTaskError(f"there is no task {task!r}{hint}")
        return known

    def replace(self, table: Table) -> None:
        """Answer from this table from now on, and keep it on disk.

        The file is readable by its owner alone, since it has hashes of API keys.
        """
        self._table = table
        partial = self._file.with_name(f".{self._file.name}.{os.getpid()}.{threading.get_ident()}.partial")
        partial.unlink(missing_ok=True)
        with open(partial, "xb", opener=_private) as out:
            out.write(orjson.dumps(asdict(table)))
        partial.replace(self._file)
        if table.keys or table.locked:
            self.lock()

    def lock(self) -> None:
        """Remember that there was an API key, over restarts too."""
        if not self.locked:
            self.locked = True
            self._lock_file.write_text(_LOCKED)

    def load_from_disk(self) -> bool:
        """Answer from the copy on disk; False where there is none that can be read."""
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
    """A task from its JSON on disk. Copies written before there were routes have no ``route``."""
    route = plain.get("route")
    return Task(**plain | {"versions": tuple(plain["versions"]), "route": check_route(route) if route else None})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

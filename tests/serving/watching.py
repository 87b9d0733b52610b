"""A watch on a store, and what it said; and a table made by hand."""

from __future__ import annotations

import threading
from pathlib import Path

from serving.store import Store, Table, Task
from serving.tasks import TaskTable, TaskWatch

A = "a" * 64


def table_of(task: str, revision: int = 7) -> Table:
    return Table(revision, {task: Task(task, revision, {"live": A}, (A,))})


class Watching:
    """A watch on a store, and what it said."""

    def __init__(self, store: Store, file: Path, replica: str = "replica-1") -> None:
        self.table = TaskTable(file)
        self.told: list[bool] = []
        self.hold = threading.Event()
        self.hold.set()
        self.watch = TaskWatch(store, self.table, replica, self._hear)

    def _hear(self, up: bool) -> None:
        self.hold.wait(20)
        self.told.append(up)

"""Plain records of what the store knows: a task, and the table of all tasks and API keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.routing.routes import Route
from serving.store.lineage import Lineage


@dataclass(frozen=True)
class Task:
    """A task as the store knows it."""

    name: str
    revision: int
    """The store's revision after the task's last change."""
    aliases: dict[str, str]
    """Alias -> digest."""
    versions: tuple[str, ...]
    """Digests, oldest first."""
    route: Route | None = None
    """How requests that name no alias are split, and which version gets copies. None: all to ``live``, no copies."""


@dataclass(frozen=True)
class Table:
    """All tasks and API keys at one revision of the store."""

    revision: int
    tasks: dict[str, Task]
    keys: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    locked: bool = False
    """Whether there ever was an API key."""
    lineage: Lineage = field(default_factory=Lineage)
    """Tells the store's past from other stores' pasts that led to the same revision."""

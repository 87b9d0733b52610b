"""What the store knows of tasks and keys, as plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from serving.routing.routes import Route


@dataclass(frozen=True)
class Task:
    """A task as the store knows it; `aliases` maps alias to digest."""

    name: str
    revision: int
    aliases: dict[str, str]
    versions: tuple[str, ...]
    """Digests, oldest first."""
    route: Route | None = None
    """How requests that name no alias are split, and who gets copies of them; None: all to ``live``, and nobody."""


@dataclass(frozen=True)
class Table:
    """All tasks and keys at one revision of the store."""

    revision: int
    tasks: dict[str, Task]
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    locked: bool = False
    """There are keys, or were."""

"""What long work tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """`what` is being done to the tensor `name`, after `done` of `total` tensors."""

    what: str
    name: str
    done: int
    total: int


Progress = Callable[[Stage], None]


def silent(stage: Stage) -> None:
    """Tell nobody."""

"""Progress of long work: the stage it is in, and the callback that is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """The work `what` is being done to the tensor `name`, after `done` of `total` tensors."""

    what: str
    name: str
    done: int
    total: int


Progress = Callable[[Stage], None]


def silent(stage: Stage) -> None:
    """A progress callback that does nothing."""

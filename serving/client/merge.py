"""A merge of tasks, in the place of a task's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ken_core.merge_recipe import MergeMethod


@dataclass(frozen=True)
class Merge:
    """Tasks of one kind that the server merges for a prediction.

    Attributes:
        weights: by task, ``task@alias`` or ``task@digest``. A task alone is its live version.
        head: the one of them whose head, labels and tokenizer answer.
        method: see `ken_core.MergeRecipe`.
        density: how much of each task's changes is kept, see `ken_core.MergeRecipe`; None: all. Not for ``linear``.
        normalize: whether to divide by the sum of the weights' sizes; None: the method's own way.
    """

    weights: Annotated[Mapping[str, float], Field(validation_alias="merge")]
    head: str
    method: MergeMethod = "linear"
    density: float | None = None
    normalize: bool | None = None

    def plain(self) -> dict[str, Any]:
        """The merge as JSON of a request whose path names the head."""
        optional = {"density": self.density, "normalize": self.normalize}
        return {
            "merge": dict(self.weights),
            "method": self.method,
            **{name: value for name, value in optional.items() if value is not None},
        }

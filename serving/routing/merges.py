"""Merges of tasks that one request asks for: which versions, with which weights, by which method. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ken_core.merge_recipe import MergeRecipe

MOST_PARTS = 8
"""Tasks in one merge. All their deltas are in host memory while it is made."""
MOST_WEIGHT = 4.0
"""The largest weight, and with a minus sign the smallest."""


@dataclass(frozen=True)
class MergePart:
    """A version of a task, and its weight in a merge.

    Attributes:
        digest: of the version's delta.
        weight: what its shift from the base is multiplied with.
        task: the task's name, without alias. It does not matter to what the merge is.
    """

    digest: str
    weight: float
    task: str = field(default="", compare=False)

    @property
    def version(self) -> str:
        """The version as a request may name it."""
        return f"{self.task}@{self.digest}"


@dataclass(frozen=True)
class Merge:
    """Versions of tasks, merged into one delta that is no version of any task.

    Attributes:
        parts: each version once, in the order of their digests. So it does not matter in which order a request names
            them, and two requests that mean the same get the same answers.
        head: digest of the part whose head, labels, tokenizer and settings the merge has.
        recipe: how they are merged.
    """

    parts: tuple[MergePart, ...]
    head: str
    recipe: MergeRecipe

    @cached_property
    def digest(self) -> str:
        """What names the merge where a delta's digest names a version: the sha256 of what it is made of."""
        plain = {
            "parts": [[part.digest, part.weight] for part in self.parts],
            "head": self.head,
            "method": self.recipe.method,
            "density": self.recipe.density,
            "normalize": self.recipe.normalizes,
            "seed": self.recipe.seed,
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def head_at(self) -> int:
        """The position of the part whose head the merge has."""
        return next(i for i, part in enumerate(self.parts) if part.digest == self.head)

    def plain(self) -> Mapping[str, Any]:
        """The merge as a request may ask for it, with its versions pinned."""
        return {
            "merge": {part.version: part.weight for part in self.parts},
            "head": self.parts[self.head_at].version,
            "method": self.recipe.method,
            "density": self.recipe.density,
            "normalize": self.recipe.normalizes,
        }

"""Merges as files, to compare with those that are made for requests."""

from __future__ import annotations

from collections.abc import Sequence

from ken_core import DeltaFile, MergeRecipe, Part, combine, deltafile
from tests.tiny_checkpoints import Tiny

LINEAR = MergeRecipe("linear")
RECIPES = (
    LINEAR,
    MergeRecipe("linear", normalize=True),
    MergeRecipe("ties", density=0.2),
    MergeRecipe("dare-linear", density=0.5),
    MergeRecipe("dare-ties", density=0.5, normalize=False),
)


def merged(tiny: Tiny, weighted: Sequence[tuple[DeltaFile, float]], recipe: MergeRecipe = LINEAR) -> DeltaFile:
    """The file that `ken merge` writes of these deltas, with the head of the first."""
    parts = [Part(deltafile.load(file.path, tiny.base), weight, file.digest) for file, weight in weighted]
    named = "-".join([recipe.method, str(recipe.normalizes), *(part.digest[:6] for part in parts)])
    return deltafile.write(combine(tiny.base, parts, recipe), tiny.base, tiny.folder / f"{named}.ken")

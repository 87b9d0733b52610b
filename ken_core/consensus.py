"""How much each of several shifts adds to each element of their merge. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ken_core.bits import Mask
from ken_core.merge_recipe import MergeRecipe

Doubles = npt.NDArray[np.float64]


def coefficients(shifts: Doubles, changed: Mask, weights: Doubles, recipe: MergeRecipe) -> Doubles:
    """The factor of each part's shift at each element, 0 where the part takes no part; shape (parts, elements).

    Args:
        shifts: shape (parts, elements), with elements trimmed or dropped already, but not yet divided by a density.
        changed: shape (parts, elements), which elements a part still shifts.
        weights: shape (parts,), as `effective_weights` gives them.
    """
    taking = _agreeing(shifts, weights) if recipe.elects else changed
    factors = taking * weights[:, None]
    if recipe.elects and recipe.normalizes:
        sizes = np.abs(factors).sum(axis=0)
        np.divide(factors, sizes, out=factors, where=sizes > 0)
    return factors / recipe.density if recipe.drops else factors


def effective_weights(weights: Sequence[float], recipe: MergeRecipe) -> list[float]:
    """The weights of all parts, divided by the sum of their sizes where the recipe normalises without an election.

    After an election, only the parts that are merged at an element count, so `coefficients` divides.
    """
    divisor = sum(map(abs, weights)) if recipe.normalizes and not recipe.elects else 1.0
    return [weight / divisor for weight in weights]


def _agreeing(shifts: Doubles, weights: Doubles) -> Mask:
    """Which weighted shifts have the sign of their sum. Where the sum is 0 no sign is elected, and none has it."""
    pulls = shifts * weights[:, None]
    elected = np.sign(pulls.sum(axis=0))
    agreeing: Mask = (np.sign(pulls) == elected) & (elected != 0)
    return agreeing

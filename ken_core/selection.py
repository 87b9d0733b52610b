"""Which parameters keep their fine-tuned value: a method that scores them and a budget that cuts.

A tensor is seen as rows: 1-D is one row, higher ranks are (first axis, rest). Everything here is exact and
deterministic: a budget is met to the element, ties fall to the earlier position (of the earlier tensor
name), and neither the order of tensors nor the number of threads changes a mask.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ken_core.bits import Mask
from ken_core.density import density
from ken_core.errors import CheckpointError, SelectionError

Method = Literal["ken", "ken-shift", "magnitude", "random"]
Scope = Literal["global", "row"]
Pair = tuple[torch.Tensor, torch.Tensor]
"""A base tensor and its fine-tuned counterpart: same dtype, same shape, floating point."""

Keys = npt.NDArray[np.uint64]
"""Scores as integers whose order is the score's order; the largest are kept."""

_KEY_BITS, _DIGIT_BITS = 64, 16

ALLOWED_SCOPES: dict[str, tuple[Scope, ...]] = {
    "ken": ("row",),
    "ken-shift": ("row",),
    "magnitude": ("global", "row"),
    "random": ("global", "row"),
}


@dataclass(frozen=True)
class Budget:
    """How many elements keep their fine-tuned value: `k` of each row, or a `fraction` of each row or of all.

    Raises:
        SelectionError: neither or both of `k` and `fraction`, one out of range, or `k` with a global scope.
    """

    scope: Scope = "global"
    fraction: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.k is None):
            raise SelectionError("a budget is either a fraction or a number k per row; give exactly one")
        if self.fraction is not None and not 0.0 <= self.fraction <= 1.0:
            raise SelectionError(f"the fraction kept must lie between 0 and 1, found {self.fraction}")
        if self.k is not None and self.k < 0:
            raise SelectionError(f"k must be 0 or more, found {self.k}")
        if self.k is not None and self.scope == "global":
            raise SelectionError("k counts elements of a row; with k, the scope must be 'row'")

    def of(self, numel: int) -> int:
        """How many of `numel` elements (of a row, or of all) are kept."""
        if self.k is not None:
            return min(self.k, numel)
        assert self.fraction is not None
        return min(numel, int(self.fraction * numel + 0.5))


@dataclass(frozen=True)
class Selection:
    """A method and its budget. `seed` matters to `random` alone.

    Raises:
        SelectionError: an unknown method, or a scope the method does not allow.
    """

    method: Method = "magnitude"
    budget: Budget = Budget(fraction=0.10)
    seed: int = 0

    def __post_init__(self) -> None:
        scopes = ALLOWED_SCOPES.get(self.method)
        if scopes is None:
            raise SelectionError(f"unknown method {self.method!r}; choose one of {', '.join(ALLOWED_SCOPES)}")
        if self.budget.scope not in scopes:
            raise SelectionError(
                f"method {self.method!r} takes a budget per {' or '.join(scopes)}, found {self.budget.scope}: "
                "densities of rows with different bandwidths do not compare"
            )


def select(
    names: list[str],
    pair: Callable[[str], Pair],
    selection: Selection,
    progress: Callable[[str], None] = lambda name: None,
) -> Mapping[str, Mask]:
    """Masks of the elements that keep their fine-tuned value.

    Args:
        names: tensors that compete for the budget.
        pair: gives (base, tuned) of a name; called again rather than holding all tensors at once.
        progress: called with each name as its work is done.

    Returns:
        For every name a flat boolean mask of the tensor's number of elements.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    ordered = sorted(names)
    if selection.budget.scope == "global":
        return _select_global(ordered, pair, selection, progress)
    masks = {}
    for name in ordered:
        masks[name] = _select_rows(_keys(name, pair(name), selection), selection.budget)
        progress(name)
    return masks


def _select_rows(keys: Keys, budget: Budget) -> Mask:
    """Keep the `budget.of(n)` largest keys of each row; of equal keys the first."""
    n = keys.shape[1]
    keep = budget.of(n)
    if keep == 0 or keep == n:
        return np.full(keys.size, keep == n)
    cut = np.partition(keys, n - keep, axis=1)[:, n - keep, None]
    above = keys > cut
    level = keys == cut
    room = keep - above.sum(axis=1, keepdims=True)
    chosen: Mask = above | (level & (np.cumsum(level, axis=1) <= room))
    return chosen.reshape(-1)


def _select_global(
    names: list[str], pair: Callable[[str], Pair], selection: Selection, progress: Callable[[str], None]
) -> Mapping[str, Mask]:
    """One threshold over all tensors, found digit by digit so that no more than one tensor is held."""
    total = sum(pair(name)[0].numel() for name in names)
    keep = selection.budget.of(total)
    if keep == 0:
        return {name: np.zeros(pair(name)[0].numel(), np.bool_) for name in names}
    threshold, room = 0, keep
    for shift in range(_KEY_BITS - _DIGIT_BITS, -1, -_DIGIT_BITS):
        histogram = np.zeros(1 << _DIGIT_BITS, np.int64)
        for name in names:
            keys = _keys(name, pair(name), selection).reshape(-1)
            if shift + _DIGIT_BITS < _KEY_BITS:
                keys = keys[(keys >> (shift + _DIGIT_BITS)) == threshold]
            digits = (keys >> shift) & ((1 << _DIGIT_BITS) - 1)
            histogram += np.bincount(digits.astype(np.int64), minlength=histogram.size)
        digit, above = _cut(histogram, room)
        threshold, room = (threshold << _DIGIT_BITS) | digit, room - above
    masks = {}
    for name in names:
        keys = _keys(name, pair(name), selection).reshape(-1)
        mask = keys > np.uint64(threshold)
        level = np.flatnonzero(keys == np.uint64(threshold))[:room]
        mask[level] = True
        room -= level.size
        masks[name] = mask
        progress(name)
    return masks


def _cut(histogram: npt.NDArray[np.int64], keep: int) -> tuple[int, int]:
    """The bin in which the `keep`-th largest falls, and how many lie in the bins above it."""
    from_top = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_top, keep))
    above = int(from_top[place - 1]) if place else 0
    return histogram.size - 1 - place, above


def _keys(name: str, pair: Pair, selection: Selection) -> Keys:
    """Scores of a tensor as ordered integers, shape (rows, n)."""
    base, tuned = pair
    for role, tensor in (("base", base), ("fine-tuned", tuned)):
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"the {role} tensor {name!r} holds NaN or infinity; it cannot be pruned or served")
    match selection.method:
        case "magnitude":
            return _float_keys((_rows(tuned).double() - _rows(base).double()).abs().numpy())
        case "random":
            return _random_keys(name, base.numel(), selection.seed).reshape(_rows(base).shape)
        case "ken":
            return _float_keys(density(_rows(tuned).numpy()))
        case "ken-shift":
            shift = _rows(tuned).double() - _rows(base).double()
            return ~_float_keys(density(shift.numpy()))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return wide.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else wide.reshape(1, -1)


def _float_keys(scores: npt.NDArray[np.float64]) -> Keys:
    """Bits of non-negative floats order as the floats do."""
    return scores.view(np.uint64)


def _random_keys(name: str, numel: int, seed: int) -> Keys:
    """Uniform keys from a stream of the tensor's own, so that other tensors do not change them."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(entropy)).integers(0, 1 << 32, numel, dtype=np.uint64)

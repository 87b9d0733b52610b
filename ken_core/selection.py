"""Selection: which parameters keep their fine-tuned value. A method scores them, a budget says how many are kept.

Everything here is exact and deterministic. Except by `ken-grid`, a budget is met to the element; among equal scores the
earlier position (of the earlier tensor name) is kept; and neither the order of tensors nor the number of threads
changes a mask. Tensors are read in blocks of rows, several times where one threshold is sought over all tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import numba
import numpy as np
import numpy.typing as npt
import torch

from ken_core import scores
from ken_core.bits import Mask
from ken_core.blocks import Workers, blocks_of, rows_of, widen, workers
from ken_core.errors import CheckpointError, SelectionError
from ken_core.grid import keep_nearest_to_grid
from ken_core.progress import Progress, Stage, silent
from ken_core.scores import KEY_BITS, Keys
from ken_core.tensor_filter import EVERYTHING, TensorFilter

Result = TypeVar("Result")
Method = Literal["ken", "ken-grid", "ken-shift", "magnitude", "random", "svd"]
Scope = Literal["global", "row"]
Pair = tuple[torch.Tensor, torch.Tensor]
"""A base tensor and its fine-tuned counterpart: same dtype, same shape, floating point, CPU."""

_DIGIT_BITS = 16
_FEW_KEYS = 1 << 23
"""If no more candidates for the threshold are left, they are sorted rather than counted once more."""

ALLOWED_SCOPES: dict[str, tuple[Scope, ...]] = {
    "ken": ("row",),
    "ken-grid": ("row",),
    "ken-shift": ("row",),
    "magnitude": ("global", "row"),
    "random": ("global", "row"),
}
"""Of the methods that choose elements."""
DECOMPOSING = "svd"
"""The method that keeps directions in place of elements, see `ken_core.truncation`."""


@dataclass(frozen=True)
class Budget:
    """How much of the fine-tune is kept.

    Attributes:
        fraction: of the elements of each row, or of all, as the scope says.
        k: elements of each row.
        energy: the share of what fine-tuning added to all matrices, counted in squares; for the method `svd`.
        nbytes: bytes of what is kept of all matrices; for the method `svd`.

    Raises:
        SelectionError: not exactly one of them is given, it is out of range, or it does not go with the scope.
    """

    scope: Scope = "global"
    fraction: float | None = None
    k: int | None = None
    energy: float | None = None
    nbytes: int | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.fraction, self.k, self.energy, self.nbytes)) != 1:
            raise SelectionError(
                "a budget is a fraction, a number k per row, a share of the energy or bytes; give exactly one"
            )
        if self.fraction is not None and not 0.0 <= self.fraction <= 1.0:
            raise SelectionError(f"the fraction kept must lie between 0 and 1, found {self.fraction}")
        if self.k is not None and self.k < 0:
            raise SelectionError(f"k must be 0 or more, found {self.k}")
        if self.k is not None and self.scope == "global":
            raise SelectionError("k counts elements of a row; with k, the scope must be 'row'")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise SelectionError(f"the share of the energy must lie above 0 and be at most 1, found {self.energy}")
        if self.nbytes is not None and self.nbytes < 0:
            raise SelectionError(f"a budget in bytes must be 0 or more, found {self.nbytes}")
        if self.counts_no_elements and self.scope == "row":
            raise SelectionError("energy and bytes are shared by all tensors; the scope must be 'global'")

    @property
    def counts_no_elements(self) -> bool:
        """Whether it is a budget of energy or bytes, which only the method `svd` takes."""
        return self.energy is not None or self.nbytes is not None

    def of(self, numel: int) -> int:
        """How many of `numel` elements are kept; `numel` counts a row or all tensors, as the scope says."""
        if self.k is not None:
            return min(self.k, numel)
        assert self.fraction is not None
        return min(numel, int(self.fraction * numel + 0.5))


@dataclass(frozen=True)
class Selection:
    """A method, its budget, and the tensors it works on. `seed` matters to `random` alone.

    Raises:
        SelectionError: the method is unknown, or does not allow the scope or budget.
    """

    method: Method = "magnitude"
    budget: Budget = Budget(fraction=0.10)
    seed: int = 0
    tensors: TensorFilter = EVERYTHING

    def __post_init__(self) -> None:
        scopes = {**ALLOWED_SCOPES, DECOMPOSING: ("global",)}.get(self.method)
        if scopes is None:
            raise SelectionError(
                f"unknown method {self.method!r}; choose one of {', '.join((*ALLOWED_SCOPES, DECOMPOSING))}"
            )
        if self.budget.scope not in scopes:
            raise SelectionError(
                f"method {self.method!r} takes a budget per {' or '.join(scopes)}, found {self.budget.scope}: "
                "densities of rows with different bandwidths do not compare"
            )
        if (self.method == DECOMPOSING) != self.budget.counts_no_elements:
            raise SelectionError(
                f"method {self.method!r} takes "
                + (
                    "a share of the energy, or bytes"
                    if self.method == DECOMPOSING
                    else "a fraction of the elements, or k"
                )
                + "; bytes and energy are budgets of the method 'svd' alone"
            )
        if self.method == "ken-grid" and self.budget.k is None:
            raise SelectionError("method 'ken-grid' lays k points over each row; give k rather than a fraction")


def select(
    names: list[str],
    pair: Callable[[str], Pair],
    selection: Selection,
    progress: Progress = silent,
) -> Iterator[tuple[str, Mask]]:
    """Masks of the elements that keep their fine-tuned value.

    Args:
        names: the tensors that share the budget.
        pair: returns (base, tuned) for a name; it is called several times, so that not all tensors are held at once.
        progress: told each tensor's name, whenever the tensor's turn comes.

    Yields:
        Every name, in sorted order, with a flat boolean mask over the tensor's elements.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    ordered = sorted(names)
    with workers() as in_order:
        cut = None
        if selection.budget.scope == "global":
            cut = _Threshold(ordered, pair, selection, progress, in_order).find()
        for done, name in enumerate(ordered):
            progress(Stage("selecting", name, done, len(ordered)))
            yield name, _mask(name, pair(name), selection, cut, in_order)


@dataclass
class _Cut:
    """Keys above `threshold` are kept, and so are the first `room` keys that equal it."""

    threshold: int
    room: int


def _mask(name: str, pair: Pair, selection: Selection, cut: _Cut | None, in_order: Workers) -> Mask:
    blocks, mask = blocks_of(pair[0]), np.empty(pair[0].numel(), np.bool_)
    width = rows_of(pair[0]).shape[1]
    if cut is None:

        def keep(rows: slice) -> None:
            mask[rows.start * width : rows.stop * width] = _keep_of_rows(name, pair, rows, selection).reshape(-1)

        for _ in in_order(keep, blocks):
            pass
        return mask

    def compare(rows: slice) -> Keys:
        return _keys(name, pair, rows, selection).reshape(-1)

    start = 0
    for keys in in_order(compare, blocks):
        cut.room = _keep_above(keys, np.uint64(cut.threshold), cut.room, mask[start : start + keys.size])
        start += keys.size
    return mask


def _keep_of_rows(name: str, pair: Pair, rows: slice, selection: Selection) -> Mask:
    """The kept elements of a block, shape (r, n), where each row has a budget of its own."""
    if selection.method == "ken-grid":
        _, tuned = _finite_block(name, pair, rows)
        return keep_nearest_to_grid(tuned, selection.budget.of(tuned.shape[1]))
    keys = _keys(name, pair, rows, selection)
    n = keys.shape[1]
    keep = selection.budget.of(n)
    if keep == 0 or keep == n:
        return np.full(keys.shape, keep == n)
    cuts = np.partition(keys, n - keep, axis=1)[:, n - keep]
    mask = np.empty(keys.shape, np.bool_)
    _keep_first_of_each(keys, cuts, keep, mask)
    return mask


class _Threshold:
    """Finds the key of the budget's last element, digit by digit, so that counts are held instead of keys."""

    def __init__(
        self, names: list[str], pair: Callable[[str], Pair], selection: Selection, progress: Progress, pool: Workers
    ) -> None:
        self._names, self._pair, self._selection = names, pair, selection
        self._progress, self._in_order = progress, pool
        self._reading = 0

    def find(self) -> _Cut:
        total = sum(self._pair(name)[0].numel() for name in self._names)
        room = self._selection.budget.of(total)
        if room == 0:
            return _Cut((1 << KEY_BITS) - 1, 0)
        known, prefix, left = 0, 0, total
        while known < KEY_BITS and left > _FEW_KEYS:
            histogram = np.zeros(1 << _DIGIT_BITS, np.int64)
            for counted in self._each(partial(_count, known=known, prefix=prefix)):
                histogram += counted
            digit, above = _where_cut(histogram, room)
            known, prefix, room = known + _DIGIT_BITS, (prefix << _DIGIT_BITS) | digit, room - above
            left = int(histogram[digit])
        if known == KEY_BITS:
            return _Cut(prefix, room)
        candidates = np.concatenate(list(self._each(partial(_with_prefix, known=known, prefix=prefix))))
        threshold = np.partition(candidates, candidates.size - room)[candidates.size - room]
        return _Cut(int(threshold), room - int((candidates > threshold).sum()))

    def _each(self, work: Callable[[Keys], Result]) -> Iterator[Result]:
        """The results of `work` on the keys of every block of every tensor, in order."""
        self._reading += 1
        for done, name in enumerate(self._names):
            self._progress(Stage(f"threshold, reading {self._reading}", name, done, len(self._names)))
            pair = self._pair(name)

            def on_block(rows: slice, name: str = name, pair: Pair = pair) -> Result:
                return work(_keys(name, pair, rows, self._selection).reshape(-1))

            yield from self._in_order(on_block, blocks_of(pair[0]))


def _count(keys: Keys, known: int, prefix: int) -> npt.NDArray[np.int64]:
    """How often each value of the next digit occurs among the keys that start with the `known` bits `prefix`."""
    histogram = np.zeros(1 << _DIGIT_BITS, np.int64)
    shift = KEY_BITS - known - _DIGIT_BITS
    _count_digits(keys, np.uint64(prefix), np.uint64(shift), known > 0, histogram)
    return histogram


def _with_prefix(keys: Keys, known: int, prefix: int) -> Keys:
    return keys if known == 0 else keys[keys >> np.uint64(KEY_BITS - known) == np.uint64(prefix)]


def _where_cut(histogram: npt.NDArray[np.int64], keep: int) -> tuple[int, int]:
    """The bin into which the `keep`-th largest key falls, and how many keys lie in the bins above it."""
    from_top = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_top, keep))
    above = int(from_top[place - 1]) if place else 0
    return histogram.size - 1 - place, above


def _keys(name: str, pair: Pair, rows: slice, selection: Selection) -> Keys:
    """Scores of a block as ordered integers, shape (r, n)."""
    base, tuned = _finite_block(name, pair, rows)
    match selection.method:
        case "magnitude":
            return scores.magnitude(base, tuned)
        case "random":
            return scores.random(name, selection.seed, rows.start * base.shape[1], base.shape)
        case "ken":
            return scores.likely_value(base, tuned)
        case "ken-shift":
            return scores.unlikely_shift(base, tuned)
    raise AssertionError(selection.method)


def _finite_block(name: str, pair: Pair, rows: slice) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    base, tuned = widen(pair[0], rows), widen(pair[1], rows)
    for role, block in (("base", base), ("fine-tuned", tuned)):
        if not np.isfinite(block).all():
            raise CheckpointError(f"the {role} tensor {name!r} holds NaN or infinity; it cannot be pruned or served")
    return base, tuned


@numba.njit(cache=True, nogil=True)
def _count_digits(keys, prefix, shift, has_prefix, histogram):  # type: ignore[no-untyped-def]  # pragma: no cover
    digit = np.uint64(0xFFFF)
    for key in keys:
        if not has_prefix or key >> shift >> np.uint64(16) == prefix:
            histogram[np.int64((key >> shift) & digit)] += 1


@numba.njit(cache=True, nogil=True)
def _keep_above(keys, threshold, room, mask):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for i in range(keys.size):
        level = keys[i] == threshold and room > 0
        mask[i] = keys[i] > threshold or level
        room -= level
    return room


@numba.njit(cache=True, nogil=True)
def _keep_first_of_each(keys, cuts, keep, mask):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Keep the keys above their row's cut, and the first keys equal to the cut, until `keep` of the row are kept."""
    for r in range(keys.shape[0]):
        above = 0
        for i in range(keys.shape[1]):
            above += keys[r, i] > cuts[r]
        room = keep - above
        for i in range(keys.shape[1]):
            level = keys[r, i] == cuts[r] and room > 0
            mask[r, i] = keys[r, i] > cuts[r] or level
            room -= level

"""Task arithmetic over deltas of one base: sums of weighted shifts, with or without an election of signs.

A part's shift is the difference between the weights that its model is served with and the base's. Shifts that are all
of low rank stay so where they are summed as they are: the factors are put side by side, with the weights in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

import numpy as np
import torch

from ken_core.blocks import Workers, workers
from ken_core.checkpoint import Checkpoint
from ken_core.consensus import effective_weights
from ken_core.delta import Delta
from ken_core.entries import LowRank, Sparse, expanded, kept, overflows, patched
from ken_core.manifest import Merged, Parent
from ken_core.merge_parts import Part, check_parts, whole_tensors
from ken_core.merge_recipe import MergeRecipe
from ken_core.merge_shifts import Shift, check_finite, merge_shifts
from ken_core.progress import Progress, Stage, silent
from ken_core.selection import Budget, Pair, Selection, select

Entry = Sparse | LowRank


def combine(
    base: Checkpoint, parts: Sequence[Part], recipe: MergeRecipe, head: int = 0, progress: Progress = silent
) -> Delta:
    """Merge deltas into one, which has the head of one of them.

    Everything that is not a shift is the head's part's, see `ken_core.merge_parts`. The parts may be of several kinds.
    The same parts in the same order give the same bits, whatever the number of threads.

    Args:
        parts: deltas of `base`, decoded.
        recipe: the method, and what it takes.
        head: the place of the part whose head the result has.
        progress: is told which tensor is being trimmed or merged.

    Returns:
        The delta. `merged` names its parts and the recipe.

    Raises:
        MergeError: the parts do not belong together, or a sum is too large for the base's dtype.
        BaseMismatchError: a part was made against another base.
        CheckpointChangedError: the base's file was written to after it was opened.
    """
    check_parts(base, parts, head)
    dense = whole_tensors(base, parts, head)
    with base.unchanged(), workers() as in_order:
        weights = effective_weights([part.weight for part in parts], recipe)
        terms = [
            _Term(weight, part.digest, _trimmed(base, part.delta, recipe, progress))
            for part, weight in zip(parts, weights, strict=True)
            if weight
        ]
        entries = dict(_entries(base, terms, recipe, in_order, progress))
    sparse = {n: e for n, e in entries.items() if isinstance(e, Sparse) and e.values.size}
    return replace(
        parts[head].delta,
        selection=_selection(parts, recipe),
        candidates=sum(base.backbone_tensors[n].numel() for n in sparse),
        sparse=sparse,
        lowrank={n: e for n, e in entries.items() if isinstance(e, LowRank)},
        dense=dense,
        adapter=None,
        fitted=None,
        merged=_record(parts, recipe, head),
        warnings=(),
    )


@dataclass(frozen=True)
class _Term:
    """What a part adds to the sum."""

    weight: float
    digest: str
    entries: Mapping[str, Entry]


def _trimmed(base: Checkpoint, delta: Delta, recipe: MergeRecipe, progress: Progress) -> Mapping[str, Entry]:
    """The delta's entries, with as many of their largest elements as the recipe's density leaves."""
    entries: dict[str, Entry] = {**delta.sparse, **delta.lowrank}
    ours = base.backbone_tensors
    room = recipe.density * sum(tensor.numel() for tensor in ours.values())
    if not recipe.trims or _changed(entries) <= room:
        return entries

    def pair(name: str) -> Pair:
        entry = entries[name]
        return ours[name], patched(ours[name], entry) if isinstance(entry, Sparse) else expanded(ours[name], entry)

    candidates = sum(ours[name].numel() for name in entries)
    largest = Selection("magnitude", Budget(fraction=room / candidates))
    return {name: kept(*pair(name), mask) for name, mask in select(list(entries), pair, largest, progress)}


def _changed(entries: Mapping[str, Entry]) -> int:
    """The number of elements that entries change; a low-rank shift changes all of its matrix."""
    return sum(e.values.size if isinstance(e, Sparse) else prod(e.shape) for e in entries.values())


def _entries(
    base: Checkpoint, terms: Sequence[_Term], recipe: MergeRecipe, in_order: Workers, progress: Progress
) -> Iterator[tuple[str, Entry]]:
    """The merged entry of every tensor that any term changes."""
    names = sorted({name for term in terms for name in term.entries})
    for done, name in enumerate(names):
        progress(Stage("merging", name, done, len(names)))
        yield name, _merged(name, base.backbone_tensors[name], terms, recipe, in_order)


def _merged(name: str, ours: torch.Tensor, terms: Sequence[_Term], recipe: MergeRecipe, in_order: Workers) -> Entry:
    found = [(term, term.entries[name]) for term in terms if name in term.entries]
    factors = [(entry, term.weight) for term, entry in found if isinstance(entry, LowRank)]
    if recipe.method == "linear" and len(factors) == len(found):
        return _side_by_side(name, ours, factors)
    shifts = [Shift(_elements(ours, entry), term.weight, f"{term.digest}/{name}") for term, entry in found]
    return merge_shifts(name, ours, shifts, recipe, in_order)


def _elements(ours: torch.Tensor, entry: Entry) -> Sparse:
    """A low-rank shift as the elements that its model is served with."""
    if isinstance(entry, Sparse):
        return entry
    return kept(ours, expanded(ours, entry), np.ones(ours.numel(), np.bool_))


def _side_by_side(name: str, ours: torch.Tensor, factors: Sequence[tuple[LowRank, float]]) -> Entry:
    """The weighted sum of low-rank shifts, as factors where these are smaller than the matrix."""
    shift = _concatenated(factors)
    if shift.a.numel() + shift.b.numel() < ours.numel() and not overflows(ours, shift):
        return shift
    check_finite(name, whole := expanded(ours, shift))
    return kept(ours, whole, np.ones(ours.numel(), np.bool_))


def _concatenated(factors: Sequence[tuple[LowRank, float]]) -> LowRank:
    """One low-rank shift whose rank is the sum of the ranks. Weights that differ go into `b`, in float32 at least.

    Quantised components are whole numbers of a size of their own still, whatever the weight.
    """
    dtype = reduce(torch.promote_types, (entry.a.dtype for entry, _ in factors))
    scales = [weight * entry.scale for entry, weight in factors]
    if len(set(scales)) == 1:
        scale, rest = scales[0], [1.0] * len(scales)
    else:
        dtype, scale, rest = torch.promote_types(dtype, torch.float32), 1.0, scales
    a = torch.cat([entry.a.to(dtype) for entry, _ in factors])
    b = torch.cat([entry.b.to(dtype) * own for (entry, _), own in zip(factors, rest, strict=True)], dim=1)
    bits = {entry.bits for entry, _ in factors}
    return LowRank(a, b, scale, bits.pop() if len(bits) == 1 else None)


def _selection(parts: Sequence[Part], recipe: MergeRecipe) -> Selection:
    """What the file says was kept: all of the merge. Factors of decompositions are still components, so it says svd."""
    decomposed = recipe.method == "linear" and all(part.delta.selection.method == "svd" for part in parts)
    return Selection("svd", Budget(energy=1.0)) if decomposed else Selection("magnitude", Budget(fraction=1.0))


def _record(parts: Sequence[Part], recipe: MergeRecipe, head: int) -> Merged:
    return Merged(
        method=recipe.method,
        density=recipe.density,
        normalize=recipe.normalizes,
        seed=recipe.seed,
        parents=tuple(Parent(digest=part.digest, weight=part.weight) for part in parts),
        head=head,
    )

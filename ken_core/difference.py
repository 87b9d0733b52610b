"""The difference of two deltas of one base: which tensors and positions both change, and how far apart the values are.

Pure arithmetic on decoded deltas; no model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan, prod, sqrt

import torch

from ken_core.checkpoint import Checkpoint
from ken_core.delta import Delta, check_base
from ken_core.entries import expanded, patched
from ken_core.progress import Progress, Stage, silent
from ken_core.viz.overlap import Overlap, Packed, overlap


@dataclass(frozen=True)
class Apart:
    """How two sets of shifts compare, element by element; apart of different tensors add up."""

    elements: int = 0
    first: float = 0.0
    second: float = 0.0
    product: float = 0.0
    """Sums over the elements: squares of either shift, and the products of both."""

    @classmethod
    def of(cls, first: torch.Tensor, second: torch.Tensor) -> Apart:
        ours, theirs = first.double(), second.double()
        return cls(
            first.numel(), float((ours * ours).sum()), float((theirs * theirs).sum()), float((ours * theirs).sum())
        )

    @property
    def cosine(self) -> float:
        """Of the two shifts as vectors, -1 to 1; NaN where one of them is nothing."""
        length = sqrt(self.first * self.second)
        return self.product / length if length else nan

    @property
    def distance(self) -> float:
        """The length of the difference, as a share of the shifts' own (root mean square) length: 0 where they are
        equal, 1.41 where they have nothing to do with each other; NaN where both are nothing."""
        length = (self.first + self.second) / 2
        return sqrt(max(0.0, self.first + self.second - 2 * self.product) / length) if length else nan

    def __add__(self, other: Apart) -> Apart:
        return Apart(
            self.elements + other.elements,
            self.first + other.first,
            self.second + other.second,
            self.product + other.product,
        )


@dataclass(frozen=True)
class Difference:
    """How two deltas differ in the backbone.

    Attributes:
        only_first, only_second: tensors that one of them changes.
        positions: of single parameters that are kept, in tensors that neither changes as a whole.
        shifts: of all tensors that both can change.
        at_shared: of the shifts at positions that both keep, or change as a whole.
        head_differs: whether the heads are of other tensors or hold other values.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    positions: Overlap
    shifts: Apart
    at_shared: Apart
    head_differs: bool


def difference(base: Checkpoint, first: Delta, second: Delta, progress: Progress = silent) -> Difference:
    """Compare two deltas, one tensor at a time.

    Raises:
        BaseMismatchError: one of them was made against another base.
        CheckpointChangedError: the base's file was written to after it was opened.
    """
    for delta in (first, second):
        check_base(delta, base.identity.digest, base.name)
    ours, theirs = _changed(first), _changed(second)
    positions, shifts, at_shared = Overlap(), Apart(), Apart()
    names = [name for name in base.backbone_tensors if name in ours | theirs]
    with base.unchanged():
        for done, name in enumerate(names):
            progress(Stage("comparing", name, done, len(names)))
            if name in first.dense or name in second.dense:
                continue  # of another shape than the base's, so there is no shift
            tensor = base.backbone_tensors[name]
            if not (name in first.lowrank or name in second.lowrank):
                positions += overlap(_packed(first, name), _packed(second, name), prod(tensor.shape))
            one, other = _shift(tensor, first, name), _shift(tensor, second, name)
            shifts += Apart.of(one, other)
            both = _places(first, name, tensor) & _places(second, name, tensor)
            at_shared += Apart.of(one[both], other[both])
    return Difference(
        tuple(sorted(ours - theirs)),
        tuple(sorted(theirs - ours)),
        positions,
        shifts,
        at_shared,
        not _same(first.head, second.head),
    )


def _changed(delta: Delta) -> set[str]:
    return {*delta.sparse, *delta.lowrank, *delta.dense}


def _packed(delta: Delta, name: str) -> Packed | None:
    return delta.sparse[name].positions if name in delta.sparse else None


def _shift(tensor: torch.Tensor, delta: Delta, name: str) -> torch.Tensor:
    """What a delta adds to a tensor of its base, flat, float32 at least."""
    wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else torch.float64
    ours = tensor.reshape(-1).to(wide)
    if name in delta.sparse:
        return patched(tensor, delta.sparse[name]).reshape(-1).to(wide) - ours
    if name in delta.lowrank:
        return expanded(tensor, delta.lowrank[name]).reshape(-1).to(wide) - ours
    return torch.zeros_like(ours)


def _places(delta: Delta, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Which elements of a tensor a delta changes: bool, flat."""
    if name in delta.sparse:
        return torch.from_numpy(delta.sparse[name].mask.copy())
    return torch.full((tensor.numel(),), name in delta.lowrank)


def _same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

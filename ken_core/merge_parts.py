"""The deltas that are merged, and what they must agree on.

Shifts are added up, so they must belong to one base. All else of the result is the head's part's: its head, labels,
architecture, config, tokenizer, how it generates, embedding settings with their projections, and tensors that the base
lacks (a pooler).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ken_core.bits import same_bits
from ken_core.checkpoint import Checkpoint
from ken_core.delta import Delta, check_base
from ken_core.errors import MergeError
from ken_core.manifest import MOST_PARENTS

_VOCABULARY = "tokenizer.json"
_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class Part:
    """One of the deltas that are merged.

    Attributes:
        weight: the factor of its shift; a negative one makes the model forget the task, 0 leaves its shift out.
        digest: sha256 of the delta's file, by which the result names its parents.
        name: what messages call it; by default the start of the digest.

    Raises:
        MergeError: the weight is NaN or infinite.
    """

    delta: Delta
    weight: float
    digest: str
    name: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise MergeError(f"the weight of {self} is {self.weight}; expected a finite number")

    def __str__(self) -> str:
        return self.name or f"delta {self.digest[:12]}"


def check_parts(base: Checkpoint, parts: Sequence[Part], head: int) -> None:
    """Check that shifts of these parts can be added up, and can be used with one part's head.

    Args:
        head: the place of that part.

    Raises:
        MergeError: there is no such part, none has a weight, or they disagree; the message names what and where.
        BaseMismatchError: a part was made against another base.
    """
    if not 0 < len(parts) <= MOST_PARENTS:
        raise MergeError(f"found {len(parts)} deltas to merge; expected 1 to {MOST_PARENTS}")
    if not 0 <= head < len(parts):
        raise MergeError(f"the head is to be that of part {head}; there are {len(parts)} parts, counted from 0")
    if all(part.weight == 0 for part in parts):
        raise MergeError("all weights are 0, so nothing would be merged; give one of them another value")
    if not math.isfinite(total := sum(abs(part.weight) for part in parts)):
        raise MergeError(f"the sizes of the weights add up to {total}; give smaller weights")
    for part in parts:
        check_base(part.delta, base.identity.digest, base.name)
        _check_shifts(base, part)
        _check_like_head(part, parts[head])


def whole_tensors(base: Checkpoint, parts: Sequence[Part], head: int) -> dict[str, torch.Tensor]:
    """The tensors that the merge stores whole.

    A tensor of another shape than the base's has no shift that could be added up. So all parts must have the same, and
    the merge has it whatever their weights. Tensors that the base lacks are the head's part's.

    Raises:
        MergeError: parts have different tensors of this sort, or one part has it and another does not.
    """
    chosen = parts[head]
    for part in parts:
        for name in sorted((part.delta.dense.keys() | chosen.delta.dense.keys()) & base.backbone_tensors.keys()):
            theirs, ours = part.delta.dense.get(name), chosen.delta.dense.get(name)
            if theirs is None or ours is None or not same_bits(theirs, ours):
                raise MergeError(
                    f"{part} and {chosen} do not have the same {name!r}: {_shape(theirs)} and {_shape(ours)}. A tensor "
                    "of another size than the base's has no shift that can be merged; it must be the same in all parts"
                )
    return dict(chosen.delta.dense)


def _shape(tensor: torch.Tensor | None) -> str:
    return "the base's size" if tensor is None else str(list(tensor.shape))


def _check_shifts(base: Checkpoint, part: Part) -> None:
    for name in sorted(part.delta.sparse.keys() | part.delta.lowrank.keys()):
        if not base.backbone_tensors[name].is_floating_point():
            raise MergeError(f"{part} changes {name!r}, which holds integers; only shifts of numbers can be merged")


def _check_like_head(part: Part, chosen: Part) -> None:
    for what, theirs, ours in _compared(part.delta, chosen.delta):
        if theirs != ours:
            raise MergeError(
                f"{part} and {chosen}, whose head the merge is to have, differ in {what}: {_shown(theirs)} and "
                f"{_shown(ours)}; merge deltas that agree in it"
            )


def _compared(part: Delta, chosen: Delta) -> Iterator[tuple[str, object, object]]:
    """What must be equal: its name, and what the part and the head's part have."""
    yield "the type of the model", part.config.get("model_type"), chosen.config.get("model_type")
    yield "the tokenizer's vocabulary", _vocabulary(part), _vocabulary(chosen)
    if part.embedding is not None and chosen.embedding is not None:
        theirs, ours = part.embedding.model_dump(), chosen.embedding.model_dump()
        yield from ((f"the embeddings' {key}", theirs[key], ours[key]) for key in theirs)


def _vocabulary(delta: Delta) -> str:
    own = delta.files.get(_VOCABULARY)
    return "the base's" if own is None else f"its own ({hashlib.sha256(own).hexdigest()[:12]})"


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"

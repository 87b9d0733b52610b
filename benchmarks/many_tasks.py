"""Deriving any number of tasks from one fine-tune, each with a delta of its own: kept elements or factors.

A fine-tune's selection is extracted once, with the defaults: 10 % of all elements, one threshold. Task i keeps as many
values of every tensor, at the same distances from one another, but shifted: its masks are the selection's, rolled by a
random offset, and its values are the fine-tune's at the new positions. So digests, masks and values differ between any
two tasks, and a switch exchanges as much as a switch between real tasks does. The answers are those of a model, though
not of a good one.

A low-rank task shifts every Linear of the backbone by the first factors of the singular value decomposition of what the
fine-tune changed there. For task i the rows of one factor and the columns of the other are rolled by random offsets, so
the shift is as large as the fine-tune's and differs between any two tasks.

An svd task is stored as `ken extract --method svd` stores one by default. For task i every matrix keeps some of its
components, and the factors are rolled too, so ranks differ between any two tasks and any two matrices.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from ken_core import Checkpoint, Delta, Extraction, deltafile, extract
from ken_core.bits import as_bits, pack_mask
from ken_core.codings import Codec
from ken_core.entries import LowRank, Sparse
from ken_core.file_size import write_within
from serving.cli.selecting import DEFAULT_PART
from serving.store import Store

Kind = Literal["kept", "low-rank", "svd"]
_LARGER = 1.4
"""Than the default size: of a file from which every svd task takes a part."""


@dataclass(frozen=True)
class Published:
    """A task in the store; `size` is the size of its delta file in bytes."""

    name: str
    digest: str
    size: int
    seconds: float
    """How long publishing took: the upload and the change of the alias."""


def derive(base: Checkpoint, tuned: Checkpoint, count: int) -> Iterator[Delta]:
    """Yield `count` deltas of the fine-tune, no two of which keep the same positions."""
    whole = extract(base, tuned)
    masks = {name: entry.mask for name, entry in whole.sparse.items()}
    bits = {name: as_bits(tuned.backbone_tensors[name]) for name in masks}
    for seed in range(count):
        dice = np.random.default_rng(seed)
        sparse = {}
        for name, mask in masks.items():
            rolled = np.roll(mask, int(dice.integers(mask.size)))
            sparse[name] = replace(whole.sparse[name], positions=pack_mask(rolled), values=bits[name][rolled])
        yield replace(whole, sparse=sparse)


def derive_low_rank(base: Checkpoint, tuned: Checkpoint, count: int, rank: int = 16) -> Iterator[Delta]:
    """Yield `count` deltas of the fine-tune that hold factors for every Linear, and nothing else beside the head."""
    whole = extract(base, tuned)
    factors = {name: _factors(base, tuned, name, rank) for name in whole.sparse if _is_of_a_linear(base, name)}
    for seed in range(count):
        dice = np.random.default_rng(seed)
        lowrank = {name: _rolled(entry, dice) for name, entry in factors.items()}
        yield replace(whole, sparse={}, lowrank=lowrank, adapter="lora")


def derive_svd(base: Checkpoint, tuned: Checkpoint, count: int) -> Iterator[Delta]:
    """Yield `count` deltas of the default size, whose matrices keep other numbers of components in each."""
    size = sum(t.nbytes for t in base.backbone_tensors.values()) / DEFAULT_PART
    with TemporaryDirectory() as folder:
        whole, _ = write_within(Extraction(base, tuned), base, int(size * _LARGER), Path(folder) / "larger.ken")
    for seed in range(count):
        dice = np.random.default_rng(seed)
        lowrank = {name: _rolled(_cut(entry, dice), dice) for name, entry in whole.lowrank.items()}
        sparse = {name: _rolled_rows(tuned, name, entry, dice) for name, entry in whole.sparse.items()}
        yield replace(whole, sparse=sparse, lowrank=lowrank)


def _cut(entry: LowRank, dice: np.random.Generator) -> LowRank:
    """Some components: all in all, as many as a file of the default size has."""
    rank = max(1, round(dice.uniform(2 / _LARGER - 1, 1) * entry.rank))
    return replace(entry, a=entry.a[:rank].contiguous(), b=entry.b[:, :rank].contiguous())


def _rolled_rows(tuned: Checkpoint, name: str, entry: Sparse, dice: np.random.Generator) -> Sparse:
    """As many rows of an embedding, others for each task; vectors stay as they are."""
    if len(entry.shape) < 2:
        return entry
    mask = np.roll(entry.mask, int(dice.integers(entry.shape[0])) * entry.shape[1])
    return replace(entry, positions=pack_mask(mask), values=as_bits(tuned.backbone_tensors[name])[mask])


def _is_of_a_linear(base: Checkpoint, name: str) -> bool:
    module, _, parameter = name.rpartition(".")
    return parameter == "weight" and isinstance(base.backbone.get_submodule(module), torch.nn.Linear)


def _factors(base: Checkpoint, tuned: Checkpoint, name: str, rank: int) -> LowRank:
    shift = tuned.backbone_tensors[name].float() - base.backbone_tensors[name].float()
    left, sizes, right = torch.linalg.svd(shift, full_matrices=False)
    return LowRank(right[:rank].contiguous(), (left[:, :rank] * sizes[:rank]).contiguous(), 1.0)


def _rolled(entry: LowRank, dice: np.random.Generator) -> LowRank:
    rows, columns = (int(dice.integers(size)) for size in entry.shape)
    return replace(entry, a=entry.a.roll(columns, 1), b=entry.b.roll(rows, 0))


def publish(delta: Delta, name: str, base: Checkpoint, store: Store, folder: Path) -> Published:
    """Write a delta with the codec that is quickest to write, or with svd's own, publish it, and delete the file."""
    path = folder / f"{name}.ken"
    codec: Codec = "int4" if delta.selection.method == "svd" else "raw"
    file = deltafile.write(delta, base, path, codec)
    began = time.perf_counter()
    store.tasks.publish(name, file)
    seconds = time.perf_counter() - began
    path.unlink()
    return Published(name, file.digest, file.size, seconds)

"""A scale for each output of a linear layer, which lets the kept elements of a shift stand in for the others.

Selection drops most of a row's shift, and what is left moves the layer's output less than fine-tuning did. The scale is
the least-squares fit of the whole shift's effect by the kept elements' effect, on the layer's inputs for some texts
without labels. It is folded into the kept values, so neither files nor kernels know of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ken_core.bits import as_bits, from_bits
from ken_core.checkpoint import Checkpoint
from ken_core.delta import Delta
from ken_core.entries import Sparse, patched
from ken_core.errors import DataError
from ken_core.mixing.changes import is_linear
from ken_core.passes import passes
from ken_core.progress import Progress, Stage, silent
from ken_core.random_texts import random_texts
from ken_core.teacher import Teacher
from ken_core.tokenization import Encoder, Readable, collate

MOST_TEXTS = 256
"""More texts change the fit less than another choice of texts does."""
_BATCH = 32
_TOKENS = 8192
_LARGEST = 8.0
"""No kept element may do the work of more than this many: a fit of so much is one to the noise of few texts."""


def fit_scales(
    base: Checkpoint,
    tuned: Checkpoint,
    delta: Delta,
    texts: Sequence[Readable] | None,
    progress: Progress = silent,
) -> Delta:
    """The delta with the kept shifts of every linear layer scaled, and a record of it; as it is where none is kept.

    Args:
        delta: extracted from `tuned`; low-rank entries, embeddings and vectors stay as they are.
        texts: like those that the task will answer, or rows of such; the first 256 are used. None: 256 texts of random
            tokens, which give a worse fit than real ones and a far better one than none.

    Raises:
        DataError: there is no text.
        TrainingError: the fine-tune does not take these texts.
    """
    encoder = Encoder.of(base, delta)
    used = list(texts[:MOST_TEXTS]) if texts is not None else random_texts(encoder, MOST_TEXTS)
    if not used:
        raise DataError("scales are fitted to texts, and there is none")
    rows = encoder.rows(used)
    linear = {f"{name}.weight": module for name, module in tuned.backbone.named_modules() if is_linear(module)}
    effects = {
        name: _Effects(delta.sparse[name], base, tuned, name, linear[name])
        for name in linear.keys() & delta.sparse
        if delta.sparse[name].values.size
    }
    if not effects:
        return delta
    teacher = Teacher(base, tuned)
    with torch.inference_mode(), base.unchanged(), tuned.unchanged():
        done = 0
        for places in passes([len(row) for row in rows], _TOKENS, _BATCH):
            progress(Stage("fitting", f"{len(rows)} texts", done, len(rows)))
            batch = collate([rows[place] for place in places], encoder.pad_id, torch.device("cpu"))
            with _watched(effects, batch["attention_mask"].bool()):
                teacher.read(batch)
            done += len(places)
        fitted = {name: found.scaled() for name, found in effects.items()}
    return replace(delta, sparse={**delta.sparse, **fitted}, fitted=0 if texts is None else len(used))


class _Effects:
    """What the whole shift of a layer, and its kept elements, add to the layer's output; summed over tokens."""

    def __init__(self, entry: Sparse, base: Checkpoint, tuned: Checkpoint, name: str, module: nn.Module) -> None:
        self._entry, self.module = entry, module
        self._ours, self._theirs = base.backbone_tensors[name], tuned.backbone_tensors[name]
        self._by_row = type(module) is nn.Linear  # otherwise an output is a column
        outputs = entry.shape[0 if self._by_row else 1]
        self._together = torch.zeros(outputs, dtype=torch.float64)
        self._kept_alone = torch.zeros(outputs, dtype=torch.float64)

    def add(self, given: torch.Tensor) -> None:
        """Count in a layer's inputs, shape (tokens, inputs)."""
        ours = self._ours.float()
        whole = self._added(given, self._theirs.float() - ours)
        kept = self._added(given, patched(self._ours, self._entry).float() - ours)
        self._together += (whole * kept).sum(dim=0, dtype=torch.float64)
        self._kept_alone += (kept * kept).sum(dim=0, dtype=torch.float64)

    def _added(self, given: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return given.float() @ (shift.T if self._by_row else shift)

    def scaled(self) -> Sparse:
        """The entry with each kept shift scaled by the fit of its output."""
        known = self._kept_alone > 0
        fit = torch.where(known, self._together / self._kept_alone.where(known, torch.ones(())), torch.ones(()))
        places = np.flatnonzero(self._entry.mask)
        width = self._entry.shape[1]
        of_output = torch.from_numpy(places // width if self._by_row else places % width)
        ours = self._ours.reshape(-1)[torch.from_numpy(places)].double()
        shift = from_bits(self._entry.values, self._entry.dtype).double() - ours
        values = ours + fit.clamp(0.0, _LARGEST)[of_output] * shift
        return replace(self._entry, values=as_bits(values.to(self._entry.dtype)))


@contextmanager
def _watched(effects: Mapping[str, _Effects], mask: torch.Tensor) -> Iterator[None]:
    """Count in what the layers are given for the tokens of a batch, padding left out."""

    def watch(found: _Effects) -> torch.utils.hooks.RemovableHandle:
        return found.module.register_forward_pre_hook(lambda _, given: found.add(_tokens(given[0], mask)))

    handles = [watch(found) for found in effects.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokens(given: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The inputs of real tokens; of one vector a text, as a pooler has it, all."""
    by_token = given.ndim > 2 and given.shape[:2] == mask.shape
    return given[mask] if by_token else given.reshape(-1, given.shape[-1])

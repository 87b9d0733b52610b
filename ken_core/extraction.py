"""Extracting a delta from a base and a fine-tune of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from ken_core.bits import same_bits
from ken_core.blocks import blocks_of, is_finite, rows_of
from ken_core.checkpoint import Checkpoint, weights
from ken_core.codings import Codec
from ken_core.configs import check_config, portable, with_the_bases
from ken_core.cross_encoder import noted
from ken_core.delta import Delta
from ken_core.entries import LowRank, Sparse, kept
from ken_core.errors import CheckpointError, DeltaFormatError
from ken_core.fingerprint import dtype_name
from ken_core.generation_settings import GenerationSettings, settings_of
from ken_core.labels import check_labels
from ken_core.manifest import task_kind
from ken_core.progress import Progress, Stage, silent
from ken_core.relatedness import cosine, is_related
from ken_core.selection import Pair, Selection, select
from ken_core.sentence_transformer import Described
from ken_core.sentence_transformer import read as read_embedding
from ken_core.tensor_filter import TensorFilter
from ken_core.tokenizer_files import carried
from ken_core.truncation import Decomposition


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    selection: Selection | None = None,
    *,
    codec: Codec = "zstd",
    cast: bool = False,
    ignore_config: Collection[str] = (),
    progress: Progress = silent,
) -> Delta:
    """Extract the selected part of a fine-tune.

    Both checkpoints stay on their mapped files. Tensors are processed one at a time, in blocks of rows.

    Args:
        selection: method, budget and tensors; by default `magnitude`, one global threshold, 10 % kept.
        codec: how the delta will be written; a budget in bytes is spent accordingly.
        cast: allow a conversion of the fine-tune's dtype to the base's that loses precision.
        ignore_config: config keys whose value is taken from the base if the two differ.
        progress: is told which tensor is being read or selected.

    Raises:
        ConfigMismatchError: the fine-tune's backbone computes something else than the base's.
        CheckpointError: weights are NaN or infinite; a conversion loses precision without `cast`; labels are ambiguous;
            neither the fine-tune's files nor the base's hold a weight; a delta cannot carry the tokenizer; or the
            sentence-transformers folder asks for more than is served.
        CheckpointChangedError: a file of either checkpoint was written to meanwhile.
        SelectionError: the selection covers no tensor.
    """
    chosen = selection or Selection()
    chosen.tensors.check(base.backbone_tensors)
    return Extraction(base, tuned, cast=cast, ignore_config=ignore_config, progress=progress).delta(chosen, codec)


class Extraction:
    """A fine-tune, compared with its base once, from which any number of deltas can be made.

    Args, Raises: as `extract`.
    """

    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        *,
        cast: bool = False,
        ignore_config: Collection[str] = (),
        progress: Progress = silent,
    ) -> None:
        self._base, self._tuned, self._progress = base, tuned, progress
        self._decompositions: dict[TensorFilter, Decomposition] = {}
        with base.unchanged(), tuned.unchanged():
            self._compare(cast, ignore_config)

    def _compare(self, cast: bool, ignore_config: Collection[str]) -> None:
        base, tuned, ours = self._base, self._tuned, self._base.backbone_tensors
        resized = any(n in ours and ours[n].shape != t.shape for n, t in tuned.backbone_tensors.items())
        self._config = with_the_bases(base.config, tuned.config, ignore_config, resized=resized)
        check_config(base.config, self._config, resized=resized)
        check_labels(self._config.to_dict(), str(tuned.folder))
        if strange := sorted(tuned.backbone_tensors.keys() - weights(base.backbone).keys()):
            raise CheckpointError(
                f"a {type(tuned.model).__name__} has {strange[0]!r} in its backbone, which a "
                f"{type(base.backbone).__name__} has no place for; it cannot share that backbone"
            )
        if lost := sorted(set(tuned.lacking) - ours.keys()):
            raise CheckpointError(
                f"neither {tuned.folder} nor the base holds {lost[0]!r}, which a {type(tuned.model).__name__} computes "
                "with"
            )
        self._described = _embedding(tuned)
        self._generation = _generation(base, tuned)
        self._files = carried(base, tuned)
        self._changed, self._whole, related = _changes(base, tuned, cast, self._progress)
        self._warnings = (
            *_warnings(base, tuned, related, bool(self._changed or self._whole)),
            *_unserved(self._generation, self._config),
        )

    def delta(self, selection: Selection, codec: Codec = "zstd") -> Delta:
        """The selected part of the fine-tune. Arguments and errors as of `extract`."""
        base, tuned, ours = self._base, self._tuned, self._base.backbone_tensors
        selection.tensors.check(ours)
        with base.unchanged(), tuned.unchanged():
            entries = dict(self._entries(selection, codec))
            return Delta(
                base_name=base.name if not Path(base.name).is_dir() else base.folder.name,
                base_fingerprint=base.identity.digest,
                architecture=type(tuned.model).__name__,
                selection=selection,
                candidates=sum(ours[n].numel() for n in self._changed),
                backbone_parameters=sum(t.numel() for t in ours.values()),
                config={**portable(self._config), **noted(tuned.folder), "dtype": dtype_name(base.dtype)},
                sparse={n: e for n, e in entries.items() if isinstance(e, Sparse) and e.values.size},
                lowrank={n: e for n, e in entries.items() if isinstance(e, LowRank)},
                dense={n: _cast(tuned.backbone_tensors[n], base.dtype_of(n)) for n in self._whole},
                head={n: _cast(t, base.dtype) for n, t in tuned.head_tensors.items()},
                files=self._files,
                embedding=None if self._described is None else self._described.embedding,
                generation=self._generation,
                projections={} if self._described is None else self._described.projections,
                warnings=self._warnings,
            )

    def _pair(self, name: str) -> Pair:
        ours = self._base.backbone_tensors[name]
        return ours, _cast(self._tuned.backbone_tensors[name], ours.dtype)

    def _entries(self, selection: Selection, codec: Codec) -> Iterator[tuple[str, Sparse | LowRank]]:
        """What is kept of every changed tensor, one tensor at a time."""
        inside = [n for n in self._changed if selection.tensors.covers(n)]
        if selection.method == "svd":
            yield from self._decomposition(selection.tensors, inside).entries(selection.budget, codec)
        else:
            for name, mask in select(inside, self._pair, selection, self._progress):
                yield name, kept(*self._pair(name), mask)
        if selection.tensors.outside == "keep":
            for name in sorted(set(self._changed) - set(inside)):
                ours, theirs = self._pair(name)
                yield name, kept(ours, theirs, np.ones(ours.numel(), np.bool_))

    def _decomposition(self, tensors: TensorFilter, names: list[str]) -> Decomposition:
        if tensors not in self._decompositions:
            backbone = self._base.backbone
            looked_up = {n for n in names if isinstance(backbone.get_submodule(n.rpartition(".")[0]), nn.Embedding)}
            self._decompositions = {tensors: Decomposition(names, looked_up, self._pair, self._progress)}
        return self._decompositions[tensors]


def _warnings(base: Checkpoint, tuned: Checkpoint, related: bool, differs: bool) -> Iterator[str]:
    """Warnings about fine-tunes that can be extracted, but may not be what the user meant."""
    if not differs:
        holds = "its head alone" if tuned.head_tensors else "nothing, and answers as the base does"
        yield f"no weight of {tuned.folder} differs from those of {base.name}: the delta holds {holds}"
    if not related:
        yield (
            f"this is hardly a fine-tune of {base.name}: nearly all of its weight matrices point in other directions "
            "than the base's, like those of a model that was trained separately. Such a delta is large, and pruning it "
            "leaves no useful answers; extract it from the base that it was fine-tuned from"
        )
    yield from _stored_whole(base, tuned)
    if frozen := tuned.lacking:
        yield (
            f"{tuned.folder} lacks {len(frozen)} of the base's tensors, {frozen[0]!r} for example; they are taken to "
            "have been frozen, so the base's own are served"
        )
    if stray := tuned.left_out:
        yield (
            f"{tuned.folder} holds tensors that a {type(tuned.model).__name__} has no place for ({len(stray)}, "
            f"{stray[0]!r} for example); they are left out, as transformers does"
        )


def _stored_whole(base: Checkpoint, tuned: Checkpoint) -> Iterator[str]:
    ours = base.backbone_tensors
    for name, tensor in tuned.backbone_tensors.items():
        if name in ours and tensor.shape != ours[name].shape:
            megabytes = tensor.numel() * base.dtype_of(name).itemsize / 1e6
            yield (
                f"{name!r} has the shape {tuple(tensor.shape)}, and the base's {tuple(ours[name].shape)}, so it is "
                f"stored whole ({megabytes:,.1f} MB before compression), however much is kept of the others; a "
                "vocabulary that has grown does that"
            )


def _unserved(generation: dict[str, Any] | None, config: PretrainedConfig) -> Iterator[str]:
    """A warning about settings of generation with which the task cannot be served."""
    try:
        GenerationSettings.of(generation or {}, config.get_text_config().vocab_size)
    except DeltaFormatError as error:
        yield f"this task can be applied, but no server takes it: {error}"


def _embedding(tuned: Checkpoint) -> Described | None:
    """What the folder of a bare backbone says about embeddings; None if the fine-tune has a head."""
    if task_kind(type(tuned.model).__name__) != "feature-extraction":
        return None
    return read_embedding(tuned.folder, getattr(tuned.config, "hidden_size", None))


def _generation(base: Checkpoint, tuned: Checkpoint) -> dict[str, Any] | None:
    """How the fine-tune generates where that differs from its base; None too if it generates nothing."""
    if task_kind(type(tuned.model).__name__) != "text-generation":
        return None
    theirs = settings_of(tuned)
    return None if theirs == settings_of(base) else theirs


def _changes(base: Checkpoint, tuned: Checkpoint, cast: bool, progress: Progress) -> tuple[list[str], list[str], bool]:
    """Compare the backbones, and check every tensor that the delta could carry.

    Returns:
        Names of the tensors that differ from the base's, names of the tensors that must be stored whole, and whether
        the two models are related at all.
    """
    ours, changed, whole, cosines = base.backbone_tensors, [], [], []
    for name, tensor in tuned.head_tensors.items():
        _checked(name, tensor, base.dtype, cast)
    for done, (name, tensor) in enumerate(tuned.backbone_tensors.items()):
        progress(Stage("comparing", name, done, len(tuned.backbone_tensors)))
        theirs = _checked(name, tensor, base.dtype_of(name), cast)
        if name not in ours or ours[name].shape != theirs.shape:
            whole.append(name)
            continue
        same = same_bits(ours[name], theirs)
        if theirs.ndim > 1 and theirs.is_floating_point():
            cosines.append(1.0 if same else cosine(ours[name], theirs))
        if not same:
            changed.append(name)
    return changed, whole, is_related(cosines)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _checked(name: str, tensor: torch.Tensor, dtype: torch.dtype, allowed: bool) -> torch.Tensor:
    """The tensor in `dtype`.

    Args:
        allowed: whether the conversion may lose precision.

    Raises:
        CheckpointError: the conversion loses precision and may not, or the result holds NaN or infinity.
    """
    narrow = _cast(tensor, dtype)
    if not is_finite(narrow):
        raise CheckpointError(
            f"the fine-tuned tensor {name!r} holds NaN or infinity as {dtype_name(dtype)}; it cannot be served"
        )
    if narrow is not tensor and not allowed:
        wide, back = rows_of(tensor), rows_of(narrow)
        if not all(torch.equal(back[b].double(), wide[b].double()) for b in blocks_of(tensor)):
            raise CheckpointError(
                f"{name!r} is {dtype_name(tensor.dtype)} in the fine-tune and would lose precision in the base's "
                f"{dtype_name(dtype)}; allow that with --cast, or use a base stored in {dtype_name(tensor.dtype)}"
            )
    return narrow

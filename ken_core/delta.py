"""A delta: what fine-tuning changed, as far as a selection kept it. Extracted from (base, tuned), applied to a base."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ken_core.bits import same_bits
from ken_core.blocks import blocks_of, is_finite, rows_of
from ken_core.checkpoint import Checkpoint, weights
from ken_core.configs import check_config, portable, restore, with_the_bases
from ken_core.cross_encoder import noted
from ken_core.embedding import Embedding
from ken_core.entries import LowRank, Sparse, expanded, kept, patched
from ken_core.errors import BaseMismatchError, CheckpointError
from ken_core.fingerprint import dtype_name
from ken_core.labels import check_labels
from ken_core.manifest import Adapter, task_kind
from ken_core.new_folder import new_folder
from ken_core.progress import Progress, Stage, silent
from ken_core.relatedness import cosine, is_related
from ken_core.selection import Pair, Selection, select
from ken_core.sentence_transformer import Described
from ken_core.sentence_transformer import read as read_embedding
from ken_core.sentence_transformer import write as write_embedding
from ken_core.tokenizer_files import carried, completed, copy_files
from ken_core.writing import writing


@dataclass(frozen=True)
class Delta:
    """A task's difference from its base, decoded. Values have the base's stored dtype."""

    base_name: str
    base_fingerprint: str
    architecture: str
    selection: Selection
    candidates: int
    """Elements of the backbone tensors that fine-tuning changed, among which the method chose."""
    backbone_parameters: int
    """All elements of the base's backbone."""
    config: Mapping[str, Any]
    sparse: Mapping[str, Sparse]
    dense: Mapping[str, torch.Tensor]
    head: Mapping[str, torch.Tensor]
    lowrank: Mapping[str, LowRank] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    embedding: Embedding | None = None
    """How token vectors become one vector; None: the fine-tune's folder does not say, or the task has a head."""
    projections: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The weights of the embedding's `Dense` modules, by the names of `Embedding.shapes`, in their stored dtype."""
    adapter: Adapter | None = None
    """The kind of adapter that the delta was imported from; None: it was extracted from a fine-tune."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user who extracts the delta. They are no part of the file."""

    @property
    def kind(self) -> str:
        return task_kind(self.architecture)

    @property
    def encodes_otherwise(self) -> bool:
        """Whether the task encodes texts in another way than the base's tokenizer."""
        own = self.embedding
        return bool(self.files) or (own is not None and (own.max_length is not None or own.lowercase))

    @property
    def stored(self) -> int:
        """Kept elements of all sparse tensors."""
        return sum(s.values.size for s in self.sparse.values())

    @property
    def nbytes(self) -> int:
        """Bytes this decoded delta occupies in memory."""
        whole = sum(t.nbytes for part in (self.dense, self.head, self.projections) for t in part.values())
        kept = sum(e.nbytes for part in (self.sparse, self.lowrank) for e in part.values())
        return whole + kept + sum(len(data) for data in self.files.values())


def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    selection: Selection | None = None,
    *,
    cast: bool = False,
    ignore_config: Collection[str] = (),
    progress: Progress = silent,
) -> Delta:
    """Extract the selected part of a fine-tune.

    Both checkpoints stay on their mapped files. Tensors are processed one at a time, in blocks of rows.

    Args:
        selection: method, budget and tensors; by default `magnitude`, one global threshold, 10 % kept.
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
    with base.unchanged(), tuned.unchanged():
        return _extract(base, tuned, selection or Selection(), cast, ignore_config, progress)


def _extract(
    base: Checkpoint,
    tuned: Checkpoint,
    selection: Selection,
    cast: bool,
    ignore_config: Collection[str],
    progress: Progress,
) -> Delta:
    ours, dtype = base.backbone_tensors, base.dtype
    resized = any(n in ours and ours[n].shape != t.shape for n, t in tuned.backbone_tensors.items())
    config = with_the_bases(base.config, tuned.config, ignore_config, resized=resized)
    check_config(base.config, config, resized=resized)
    check_labels(config.to_dict(), str(tuned.folder))
    if strange := sorted(tuned.backbone_tensors.keys() - weights(base.backbone).keys()):
        raise CheckpointError(
            f"a {type(tuned.model).__name__} has {strange[0]!r} in its backbone, which a "
            f"{type(base.backbone).__name__} has no place for; it cannot share that backbone"
        )
    if lost := sorted(set(tuned.lacking) - ours.keys()):
        raise CheckpointError(
            f"neither {tuned.folder} nor the base holds {lost[0]!r}, which a {type(tuned.model).__name__} computes with"
        )
    selection.tensors.check(ours)
    described = _embedding(tuned)
    files = carried(base, tuned)
    changed, whole, related = _changes(base, tuned, cast, progress)

    def pair(name: str) -> Pair:
        return ours[name], _cast(tuned.backbone_tensors[name], ours[name].dtype)

    return Delta(
        base_name=base.name if not Path(base.name).is_dir() else base.folder.name,
        base_fingerprint=base.identity.digest,
        architecture=type(tuned.model).__name__,
        selection=selection,
        candidates=sum(ours[n].numel() for n in changed),
        backbone_parameters=sum(t.numel() for t in ours.values()),
        config={**portable(config), **noted(tuned.folder), "dtype": dtype_name(dtype)},
        sparse={n: s for n, s in _entries(changed, pair, selection, progress) if s.values.size},
        dense={n: _cast(tuned.backbone_tensors[n], base.dtype_of(n)) for n in whole},
        head={n: _cast(t, dtype) for n, t in tuned.head_tensors.items()},
        files=files,
        embedding=None if described is None else described.embedding,
        projections={} if described is None else described.projections,
        warnings=tuple(_warnings(base, tuned, related, bool(changed or whole))),
    )


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


def _embedding(tuned: Checkpoint) -> Described | None:
    """What the folder of a bare backbone says about embeddings; None if the fine-tune has a head."""
    if task_kind(type(tuned.model).__name__) != "feature-extraction":
        return None
    return read_embedding(tuned.folder, getattr(tuned.config, "hidden_size", None))


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


def _entries(
    changed: list[str], pair: Callable[[str], Pair], selection: Selection, progress: Progress
) -> Iterator[tuple[str, Sparse]]:
    """The kept elements of every changed tensor, one tensor at a time."""
    inside = [n for n in changed if selection.tensors.covers(n)]
    for name, mask in select(inside, pair, selection, progress):
        yield name, kept(*pair(name), mask)
    if selection.tensors.outside == "keep":
        for name in sorted(set(changed) - set(inside)):
            ours, theirs = pair(name)
            yield name, kept(ours, theirs, np.ones(ours.numel(), np.bool_))


def merge(base: Checkpoint, delta: Delta) -> dict[str, torch.Tensor]:
    """The pruned model's backbone: the base's tensors, with the delta's changes made.

    Raises:
        BaseMismatchError: the delta was made against another base.
        CheckpointChangedError: the base's file was written to after it was opened.
    """
    check_base(delta, base.identity.digest, base.name)
    ours = base.backbone_tensors
    with base.unchanged():
        sparse = {n: patched(ours[n], entry) for n, entry in delta.sparse.items()}
        lowrank = {n: expanded(ours[n], entry) for n, entry in delta.lowrank.items()}
    return {**ours, **sparse, **lowrank, **delta.dense}


def apply(base: Checkpoint, delta: Delta, out: Path) -> None:
    """Write the pruned model as a complete Hugging Face folder; as a sentence-transformers folder if it was one.

    Raises:
        BaseMismatchError: the delta was made against another base.
        CheckpointChangedError: the base's file was written to after it was opened.
        OutputError: `out` exists and is not an empty folder, or cannot be written.
    """
    merged = merge(base, delta)
    config = restore(dict(delta.config), base.config)
    config.architectures = [delta.architecture]
    prefix = _saved_prefix(delta)
    tensors = {prefix + n: t.contiguous() for n, t in merged.items()} | dict(delta.head)
    with new_folder(out) as folder, base.unchanged(), writing(out):
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config.save_pretrained(folder)
        if delta.files:
            for name, data in completed(base, delta.files).items():
                (folder / name).write_bytes(data)
        else:
            copy_files(base.folder, folder)
        if delta.embedding is not None:
            write_embedding(Described(delta.embedding, delta.projections), folder, config.hidden_size)


def check_base(delta: Delta, found: str, name: str) -> None:
    """Raise `BaseMismatchError` unless the delta was made against the base with fingerprint `found`."""
    if delta.base_fingerprint != found:
        raise BaseMismatchError(
            f"the delta was made against base {delta.base_name!r} with fingerprint {delta.base_fingerprint}, "
            f"but {name!r} has fingerprint {found}; use the base it names, or extract the delta again"
        )


def _saved_prefix(delta: Delta) -> str:
    import transformers

    model_class = getattr(transformers, delta.architecture, None)
    if model_class is None:
        raise CheckpointError(f"this transformers does not know the delta's architecture {delta.architecture!r}")
    return f"{model_class.base_model_prefix}." if task_kind(delta.architecture) != "feature-extraction" else ""


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

"""A delta: what fine-tuning changed, as far as a selection kept it; and the model that it makes of its base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ken_core.checkpoint import Checkpoint
from ken_core.configs import restore
from ken_core.embedding import Embedding
from ken_core.entries import LowRank, Sparse, expanded, patched
from ken_core.errors import BaseMismatchError, CheckpointError
from ken_core.generation_settings import FILE, settings_of
from ken_core.manifest import Adapter, Distilled, Merged, task_kind
from ken_core.new_folder import new_folder
from ken_core.selection import Selection
from ken_core.sentence_transformer import Described
from ken_core.sentence_transformer import write as write_embedding
from ken_core.tokenizer_files import completed, copy_files
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
    generation: Mapping[str, Any] | None = None
    """How the task generates, as generation_config.json has it; None: as its base does, or it generates nothing."""
    adapter: Adapter | None = None
    """The kind of adapter that the delta was imported from; None: it was extracted from a fine-tune."""
    fitted: int | None = None
    """How many texts the kept values were fitted to (`ken_core.scales`), 0 for texts of random tokens; None: they were
    not fitted."""
    distilled: Distilled | None = None
    """How the delta's numbers were trained to give the fine-tune's answers (`ken_core.distillation`); None: they were
    not."""
    merged: Merged | None = None
    """What the delta was merged from (`ken_core.arithmetic`); None: it was made of one fine-tune or adapter."""
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
        if delta.kind == "text-generation":
            settings = settings_of(base) if delta.generation is None else delta.generation
            (folder / FILE).write_text(json.dumps(settings, indent=2) + "\n")
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

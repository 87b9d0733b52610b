"""Tiny bases of several architectures, kept resident, and fine-tunes of them that answer as on a server."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModel

import ken_core
from ken_core import Budget, Checkpoint, DeltaFile, ResidentModel, Selection, deltafile, open_base, open_tuned
from ken_core.configs import restore
from ken_core.embedder import Embedder
from ken_core.heads import Grafted, graft_split
from ken_core.resident import Attached
from ken_core.tokenization import Encoder, collate
from serving.pipelines import pipeline_for
from serving.pipelines.base import TaskSpec, check, check_inputs
from serving.workers.steps import finish
from tests.ken_core.architectures import BY_NAME, HEADS
from tests.tiny_checkpoints import POSITIONS, declare_embeddings
from tests.tiny_tokenizers import VOCABULARY, WRITERS

TOKENIZERS: Mapping[str, str] = MappingProxyType(
    {
        "bert": "word pieces",
        "distilbert": "word pieces",
        "electra": "word pieces",
        "roberta": "bytes",
        "deberta-v2": "pieces",
        "llama": "bytes alone",
        "qwen2": "bytes alone",
    }
)
"""Architecture -> the tokenizer of its models, a key of `WRITERS`."""
_BATCH = 5


@dataclass(frozen=True)
class FineTune:
    """A fine-tune's delta, attached to the resident base, and the folder that `ken apply` wrote of it."""

    base: ArchitectureBase
    file: DeltaFile
    applied: Path
    attached: Attached
    model: Grafted
    spec: TaskSpec
    head: str

    def ask(self, kind: str, inputs: Sequence[Any], **parameters: Any) -> list[Any]:
        """Outputs of a kind, as `Inference` computes them but without queues; batches mix rows of inputs."""
        pipeline = pipeline_for(kind, self.head)
        checked = check(pipeline.parameters, parameters)
        prepared = finish(pipeline.prepare(check_inputs(pipeline, inputs), self.spec, checked))
        rows = [row for one in prepared for row in one.rows]
        self.base.resident.activate(self.attached)
        raws = []
        with torch.inference_mode():
            for start in range(0, len(rows), _BATCH):
                batch = collate(rows[start : start + _BATCH], self.spec.encoder.pad_id, self.base.resident.device)
                output = self.base.resident.backbone(**batch, return_dict=True) if self.model.splits else None
                raws += pipeline.run_head(self.model, output, batch)
        left = iter(raws)
        return [
            pipeline.present(one, list(itertools.islice(left, len(one.rows))), self.spec, checked) for one in prepared
        ]


@dataclass(frozen=True)
class ArchitectureBase:
    """A random base of an architecture, and the folder for it and its fine-tunes."""

    name: str
    folder: Path

    @cached_property
    def path(self) -> Path:
        path = self.folder / "base"
        torch.manual_seed(7)
        behind_padding = 2 if self.name == "roberta" else 0
        sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS + behind_padding}
        tokens = {"pad_token_id": 1, "bos_token_id": 0} if self.name == "roberta" else {}
        AutoModel.from_config(BY_NAME[self.name].config(**sizes, **tokens)).save_pretrained(path)
        WRITERS[TOKENIZERS[self.name]](path)
        return path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_base(str(self.path))

    @cached_property
    def resident(self) -> ResidentModel:
        return ResidentModel(open_base(str(self.path)))

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder(self.checkpoint, self.checkpoint.config, {})

    def delta(
        self,
        name: str,
        head: str,
        labels: Sequence[str] = (),
        problem_type: str | None = None,
        pooling: str | None = None,
        undeclared: Sequence[tuple[str, Any]] = (),
        **config: Any,
    ) -> DeltaFile:
        """Write a fine-tune, all of whose weights have moved, and its delta.

        Args:
            pooling: if given, the folder declares embeddings with this pooling mode of sentence-transformers, and that
                vectors are scaled.
            undeclared: config keys that the config's class does not define, with their values.
        """
        folder = self.folder / name
        torch.manual_seed(len(name) + 10 * len(labels))
        names = dict(enumerate(labels))
        told: dict[str, Any] = {"id2label": names, "label2id": {v: k for k, v in names.items()}} if labels else {}
        if problem_type:
            told["problem_type"] = problem_type
        model = HEADS[head].from_pretrained(self.path, **told, **config)
        inside = f"{model.base_model_prefix}."
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                of_backbone = parameter_name.startswith(inside) or head == "features"
                parameter.add_(torch.randn_like(parameter) * (0.1 if of_backbone else 0.7))
        model.config.update(dict(undeclared))
        model.save_pretrained(folder)
        WRITERS[TOKENIZERS[self.name]](folder)
        if pooling:
            declare_embeddings(folder, {f"pooling_mode_{pooling}": True}, "Normalize")
        delta = ken_core.extract(self.checkpoint, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.3)))
        return deltafile.write(delta, self.checkpoint, folder.with_suffix(".ken"))

    def fine_tune(self, name: str, head: str, labels: Sequence[str] = (), **config: Any) -> FineTune:
        """Write a fine-tune and its delta as `delta` does, and attach the delta."""
        return served(self, self.delta(name, head, labels, **config))


def served(base: ArchitectureBase, file: DeltaFile) -> FineTune:
    """Attach a delta to its resident base, and write the folder that `ken apply` writes of it."""
    delta = deltafile.read(file, base.checkpoint, base.resident.fingerprint.digest)
    applied = file.path.with_suffix(".applied")
    ken_core.apply(open_base(str(base.path)), delta, applied)
    attached = base.resident.attach(delta, materialised=bool(delta.lowrank))
    model = graft_split(base.resident.backbone, delta.architecture, delta.config, attached.head)
    encoder = Encoder.of(base.checkpoint, delta) if delta.encodes_otherwise else base.encoder
    embedder = Embedder(delta.embedding, delta.projections) if delta.embedding else None
    spec = TaskSpec(restore(dict(delta.config)), encoder, embedder)
    return FineTune(base, file, applied, attached, model, spec, delta.kind)

"""Sound delta files to start from: four bases, every kind and codec, tokenizer files, low-rank and whole tensors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from ken_core import Budget, DeltaFile, Selection, deltafile, extract, import_peft, open_tuned
from ken_core.checkpoint import TOKENIZER_FILES
from tests.ken_core.adapters import make_adapter
from tests.tiny_architectures import ArchitectureBase

BASES = ("bert", "roberta", "deberta-v2", "qwen2")
_TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
_HEADS: dict[str, list[tuple[str, list[str], str, dict[str, Any]]]] = {
    "bert": [
        ("sequence", ["contradiction", "neutral", "entailment"], "zstd", {}),
        ("tokens", _TAGS, "int8", {}),
        ("answers", ["start", "end"], "sign", {}),
        ("features", [], "raw", {"pooling": "mean_tokens"}),
        ("sequence", ["relevance"], "raw", {"problem_type": "regression"}),
    ],
    "roberta": [("sequence", ["bad", "good"], "raw", {}), ("tokens", _TAGS, "zstd", {})],
    "deberta-v2": [("sequence", ["bad", "good", "so so"], "int4", {}), ("answers", ["start", "end"], "zstd", {})],
    "qwen2": [("sequence", ["bad", "good"], "zstd", {}), ("features", [], "zstd", {"pooling": "lasttoken"})],
}


@dataclass(frozen=True)
class Seed:
    """A sound delta file and the name of its base."""

    base: str
    file: DeltaFile


def make_seeds(base: ArchitectureBase) -> list[Seed]:
    """Deltas of a base, each with the tokenizer files of its own that a fine-tune may bring."""
    found = []
    for i, (head, labels, codec, options) in enumerate(_HEADS[base.name]):
        file = base.delta(f"seed-{i}", head, labels, **options)
        found.append(_with_tokenizer(base, file, codec, f"{base.name}-{i}"))
    if base.name == "bert":
        found += [_resized(base), _lowrank(base)]
    return [Seed(base.name, file) for file in found]


def _with_tokenizer(base: ArchitectureBase, file: DeltaFile, codec: Any, name: str) -> DeltaFile:
    delta = deltafile.load(file.path, base.checkpoint)
    files = {n: data for n in TOKENIZER_FILES if (data := base.checkpoint.tokenizer_file(n)) is not None}
    return deltafile.write(dataclasses.replace(delta, files=files), base.checkpoint, base.folder / f"{name}.ken", codec)


def _resized(base: ArchitectureBase) -> DeltaFile:
    """With an embedding of four more tokens, whole."""
    folder = base.folder / "resized"
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base.path, num_labels=3)
    model.resize_token_embeddings(model.config.vocab_size + 4, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    delta = extract(base.checkpoint, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.2)))
    file = deltafile.write(delta, base.checkpoint, folder.with_suffix(".ken"))
    return _with_tokenizer(base, file, "zstd", "bert-resized")


def _lowrank(base: ArchitectureBase) -> DeltaFile:
    """Of a LoRA adapter."""
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
    made = make_adapter(base.path, AutoModelForSequenceClassification, config, base.folder / "lora", num_labels=2)
    delta = import_peft(made.folder, base.checkpoint)
    file = deltafile.write(delta, base.checkpoint, base.folder / "lora.ken", "raw")
    return _with_tokenizer(base, file, "raw", "bert-lora")


def make_all(folder: Path) -> tuple[dict[str, ArchitectureBase], list[Seed]]:
    bases = {name: ArchitectureBase(name, folder / name) for name in BASES}
    for base in bases.values():
        base.folder.mkdir(parents=True, exist_ok=True)
    return bases, [seed for base in bases.values() for seed in make_seeds(base)]

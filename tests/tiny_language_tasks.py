"""Fine-tunes of one tiny language model: some that generate text, and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from ken_core import Budget, Checkpoint, DeltaFile, Selection, deltafile, extract, open_base, open_tuned
from tests.tiny_language_models import POSITIONS, write_chat_tokenizer, write_language_model

_SPREAD = 0.08


@dataclass(frozen=True)
class LanguageTasks:
    """A base, and the folder for it and its fine-tunes.

    Attributes:
        positions: the most tokens of a text, its prompt included.
    """

    folder: Path
    positions: int = POSITIONS

    @cached_property
    def path(self) -> Path:
        return write_language_model(self.folder / "base", max_position_embeddings=self.positions)

    @cached_property
    def base(self) -> Checkpoint:
        return open_base(str(self.path))

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    def language_model(self, name: str, **tokenizer: Any) -> DeltaFile:
        """A fine-tune that generates text. Other names have other weights.

        Args:
            tokenizer: how its tokenizer differs from the base's, such as by its chat template.
        """
        return write_language_task(self.base, self.folder / name, **tokenizer)

    def classifier(self, name: str, labels: Sequence[str] = ("ham", "spam")) -> DeltaFile:
        """A fine-tune that does not."""
        names = dict(enumerate(labels))
        told = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
        model = AutoModelForSequenceClassification.from_pretrained(self.path, **told)
        return _moved(self.base, self.folder / name, model)


def write_language_task(base: Checkpoint, folder: Path, **tokenizer: Any) -> DeltaFile:
    """Write a fine-tune of a language model, all of whose weights have moved, and its delta."""
    return _moved(base, folder, AutoModelForCausalLM.from_pretrained(base.folder), **tokenizer)


def _moved(base: Checkpoint, folder: Path, model: PreTrainedModel, **tokenizer: Any) -> DeltaFile:
    torch.manual_seed(sum(folder.name.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * _SPREAD)
    model.save_pretrained(folder)
    write_chat_tokenizer(folder, **tokenizer)
    delta = extract(base, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.3)))
    return deltafile.write(delta, base, folder.with_suffix(".ken"))

"""Fine-tunes of one tiny language model: some that generate text, and a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

import ken_core
from ken_core import Budget, Checkpoint, DeltaFile, Selection, deltafile, open_base, open_tuned
from tests.tiny_language_models import write_chat_tokenizer, write_language_model


@dataclass(frozen=True)
class LanguageTasks:
    """A base, and the folder for its fine-tunes.

    Attributes:
        positions: the most tokens of a text, its prompt included.
    """

    folder: Path
    positions: int = 256

    @cached_property
    def path(self) -> Path:
        return write_language_model(self.folder / "base", max_position_embeddings=self.positions)

    @cached_property
    def base(self) -> Checkpoint:
        return open_base(str(self.path))

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.path)

    def language_model(self, name: str, seed: int, **tokenizer: Any) -> DeltaFile:
        """A fine-tune that generates text.

        Args:
            tokenizer: how its tokenizer differs from the base's, such as by its chat template.
        """
        return self._delta(name, LlamaForCausalLM.from_pretrained(self.path), seed, tokenizer)

    def classifier(self, name: str, seed: int) -> DeltaFile:
        """A fine-tune that does not."""
        names = {0: "ham", 1: "spam"}
        told = {"id2label": names, "label2id": {label: i for i, label in names.items()}, "pad_token_id": 2}
        return self._delta(name, LlamaForSequenceClassification.from_pretrained(self.path, **told), seed, {})

    def _delta(self, name: str, model: Any, seed: int, tokenizer: dict[str, Any]) -> DeltaFile:
        folder = self.folder / name
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        write_chat_tokenizer(folder, **tokenizer)
        tuned = open_tuned(str(folder))
        delta = ken_core.extract(self.base, tuned, Selection(budget=Budget(fraction=0.3)))
        return deltafile.write(delta, self.base, folder.with_suffix(".ken"))

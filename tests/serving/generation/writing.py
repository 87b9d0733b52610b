"""Fine-tunes of a tiny language model as their users have them, and what those generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ken_core import Budget, Checkpoint, DeltaFile, Selection, deltafile, extract, open_base, open_tuned
from ken_core.delta import apply
from tests.tiny_language_models import write_chat_tokenizer, write_language_model


@dataclass(frozen=True)
class Written:
    """A fine-tune's delta, and the folder that `ken apply` makes of it."""

    file: DeltaFile
    applied: Path

    @cached_property
    def model(self) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.applied)
        return model.eval()

    def generate(self, ids: Sequence[int], tokens: int, **settings: Any) -> list[int]:
        """The tokens that Transformers' own `generate` adds to a prompt alone."""
        with torch.inference_mode():
            made = self.model.generate(
                torch.tensor([list(ids)]), max_new_tokens=tokens, do_sample=False, pad_token_id=0, **settings
            )
        return made[0, len(ids) :].tolist()

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """After each token, (tokens, vocabulary)."""
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([list(ids)])).logits[0]
        return logits


@dataclass(frozen=True)
class LanguageModels:
    """A tiny base, and the folder for it and its fine-tunes."""

    folder: Path

    @cached_property
    def base(self) -> Path:
        return write_language_model(self.folder / "base")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return open_base(str(self.base))

    def fine_tune(self, name: str, **tokenizer: Any) -> Written:
        """A fine-tune, all of whose weights have moved.

        Args:
            tokenizer: how its tokenizer differs from the base's, such as by its chat template.
        """
        return fine_tune_of(self.checkpoint, self.folder / name, **tokenizer)

    def classifier(self, name: str, labels: Sequence[str]) -> DeltaFile:
        """The delta of a text classifier on the same base."""
        folder = self.folder / name
        names = dict(enumerate(labels))
        model = AutoModelForSequenceClassification.from_pretrained(
            self.base, id2label=names, label2id={v: k for k, v in names.items()}
        )
        torch.manual_seed(9)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.08)
        model.save_pretrained(folder)
        write_chat_tokenizer(folder)
        delta = extract(self.checkpoint, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.3)))
        return deltafile.write(delta, self.checkpoint, folder.with_suffix(".ken"))


def fine_tune_of(base: Checkpoint, folder: Path, **tokenizer: Any) -> Written:
    """Write a fine-tune of a base, its delta, and the folder that the delta makes of the base."""
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    torch.manual_seed(sum(folder.name.encode()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    model.save_pretrained(folder)
    write_chat_tokenizer(folder, **tokenizer)
    delta = extract(base, open_tuned(str(folder)), Selection(budget=Budget(fraction=0.3)))
    file = deltafile.write(delta, base, folder.with_suffix(".ken"))
    applied = folder.with_name(f"{folder.name}-applied")
    apply(base, delta, applied)
    return Written(file, applied)

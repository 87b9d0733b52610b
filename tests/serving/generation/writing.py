"""Fine-tunes of a tiny language model as their users have them, and what those generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ken_core import Checkpoint, DeltaFile, deltafile
from ken_core.delta import apply
from tests.tiny_language_tasks import write_language_task


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


def fine_tune_of(base: Checkpoint, folder: Path, **tokenizer: Any) -> Written:
    """Write a fine-tune of a base, its delta, and the folder that the delta makes of the base.

    Args:
        tokenizer: how its tokenizer differs from the base's, such as by its chat template.
    """
    file = write_language_task(base, folder, **tokenizer)
    applied = folder.with_name(f"{folder.name}-applied")
    apply(base, deltafile.load(file.path, base), applied)
    return Written(file, applied)

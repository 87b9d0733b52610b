"""Whole fine-tunes, loaded from their folders by the peers. This module imports nothing of this project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

BATCH = 32
"""The most texts in one forward pass, as in this project's own settings."""


@dataclass(frozen=True)
class Answer:
    """The label with the highest score."""

    label: str
    score: float


class WholeModels:
    """Loads fine-tunes of one base from the folders ``<folder>/<task>``; they share its tokenizer."""

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        self._folder = folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder / tasks[0])

    def load(self, task: str) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(self._folder / task)
        return model.eval()

    def classify(self, model: PreTrainedModel, texts: Sequence[str]) -> list[Answer]:
        """One forward pass over at most `BATCH` texts."""
        encoded = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            scores = model(**encoded).logits.softmax(-1)
        best, labels = scores.max(-1)
        names = model.config.id2label or {}
        return [Answer(names[int(i)], float(s)) for i, s in zip(labels, best, strict=True)]

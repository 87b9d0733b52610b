"""Evaluating classifiers in process: a model's answers to texts, and their accuracy against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from ken_core.checkpoint import Checkpoint
from ken_core.examples import Example
from ken_core.labels import numbers_of
from ken_core.tokenization import Encoder, Input, collate

Answers = npt.NDArray[np.int64]
"""Index of the label with the highest logit for each text, shape (texts,)."""

_BATCH = 32


def classify(model: PreTrainedModel, encoder: Encoder, texts: Sequence[Input]) -> Answers:
    """Answer texts with a sequence classifier, in batches of similar length; shape (texts,)."""
    return np.asarray(logits(model, encoder, texts).argmax(dim=-1).numpy(), np.int64)


def logits(model: PreTrainedModel, encoder: Encoder, texts: Sequence[Input]) -> torch.Tensor:
    """A sequence classifier's logits, from batches of similar length; float32 on the CPU, shape (texts, labels)."""
    rows = encoder(texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            batch = collate([rows[i] for i in chosen], encoder.pad_id, model.device)
            for place, row in zip(chosen, model(**batch).logits.float().cpu(), strict=True):
                found[place] = row
    return torch.stack(found)


def accuracy(model: PreTrainedModel, checkpoint: Checkpoint, examples: Sequence[Example]) -> float:
    """Share of examples whose label gets the highest logit.

    Args:
        checkpoint: the source of the tokenizer files.
    """
    answers = classify(model, Encoder(checkpoint, model.config, {}), [e.input for e in examples])
    return float((answers == label_ids(model, examples)).mean())


def label_ids(model: PreTrainedModel, examples: Sequence[Example]) -> Answers:
    """The model's own numbers for the examples' labels, shape (examples,).

    Raises:
        DataError: there is a label that the model does not know.
    """
    names: Mapping[Any, str] = model.config.id2label or {}
    return np.array(numbers_of([e.label for e in examples], names), np.int64)

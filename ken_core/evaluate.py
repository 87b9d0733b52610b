"""How well a classifier answers labelled (or merely agrees on unlabelled) text, in process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from ken_core.checkpoint import Checkpoint
from ken_core.examples import DataError, Example
from ken_core.tokenization import Encoder, collate

Answers = npt.NDArray[np.int64]
"""Index of the label with the highest logit, one a text."""

_BATCH = 32


def classify(model: PreTrainedModel, encoder: Encoder, texts: Sequence[str]) -> Answers:
    """Answer texts with a sequence classifier, in batches of similar length; shape (texts,)."""
    rows = encoder(texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    answers = np.empty(len(rows), np.int64)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            logits = model(**collate([rows[i] for i in chosen], encoder.pad_id, model.device)).logits
            answers[chosen] = logits.argmax(dim=-1).cpu().numpy()
    return answers


def accuracy(model: PreTrainedModel, checkpoint: Checkpoint, examples: Sequence[Example]) -> float:
    """Share of examples whose label gets the highest logit.

    Args:
        checkpoint: gives the tokenizer files.
    """
    answers = classify(model, Encoder(checkpoint, model.config, {}), [e.text for e in examples])
    return float((answers == label_ids(model, examples)).mean())


def label_ids(model: PreTrainedModel, examples: Sequence[Example]) -> Answers:
    """The model's own numbers of the examples' labels.

    Raises:
        DataError: a label the model does not know.
    """
    ids = {str(name): int(number) for number, name in (model.config.id2label or {}).items()}
    if unknown := sorted({e.label for e in examples} - set(ids)):
        raise DataError(f"the examples have the label {unknown[0]!r}; the model knows {', '.join(sorted(ids))}")
    return np.array([ids[e.label] for e in examples], np.int64)

"""Held-out accuracy of a classifier, in process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ken_core import Checkpoint
from ken_core.finetune import Example
from serving.tokenization import Encoder, collate

_BATCH = 32


def accuracy(model: PreTrainedModel, checkpoint: Checkpoint, examples: Sequence[Example]) -> float:
    """Share of examples whose label gets the highest logit.

    Args:
        checkpoint: gives the tokenizer files.
    """
    encoder = Encoder(checkpoint, model.config, {})
    rows = encoder([e.text for e in examples])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    labels = model.config.id2label or {}
    right = 0
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            logits = model(**collate([rows[i] for i in chosen], encoder.pad_id, torch.device("cpu"))).logits
            found = logits.argmax(dim=-1).tolist()
            right += sum(labels[f] == examples[i].label for f, i in zip(found, chosen, strict=True))
    return right / len(examples)

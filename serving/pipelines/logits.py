"""What kinds with a classification head share: its logits, and the functions that make scores of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from transformers import PreTrainedModel

from serving.pipelines.base import Float64, Raw


def classify(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
    """Logits of a sequence classifier, shape (labels,) a row.

    Decoders classify by a row's last token that is not the padding their own config names, and refuse a batch where it
    names none: so rows are padded with that token here, or run one by one.
    """
    padding = model.config.get_text_config().pad_token_id
    attention = batch["attention_mask"]
    if len(attention) > 1 and (padding is None or padding < 0):
        lengths = attention.sum(dim=1).tolist()
        alone = [{n: t[i : i + 1, :length] for n, t in batch.items()} for i, length in enumerate(lengths)]
        return [raw for one in alone for raw in _logits(model, one)]
    if len(attention) > 1:
        batch = {**batch, "input_ids": batch["input_ids"].masked_fill(attention == 0, padding)}
    return _logits(model, batch)


def classify_tokens(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
    """Logits of a token classifier, shape (tokens, labels) a row, padding cut off."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return [logits[:length] for logits, length in zip(_logits(model, batch), lengths, strict=True)]


def _logits(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
    return list(model(**batch).logits.float().cpu().numpy())


def sigmoid(logits: Float64) -> Float64:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def softmax(logits: Float64) -> Float64:
    """Along the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))

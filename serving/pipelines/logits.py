"""What kinds with a classification head share: its logits, and the functions that make scores of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs, cut
from serving.pipelines.base import Float64, Raw


def classify(model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
    """Logits of a sequence classifier, shape (labels,) a row.

    The head of a decoder classifies by a row's last token that is not the padding token of the task's own config, and
    refuses several rows where that config names no padding token. So this function gives the head rows padded with
    that token, or, where the model has no such token, one row after the other.
    """
    attention = inputs["attention_mask"]
    if len(attention) == 1:
        return _logits(model, output, inputs)
    config = model.config.get_text_config()
    padding = config.pad_token_id
    if padding is None or not 0 <= padding < config.vocab_size:
        return [raw for one in _rows(output, inputs) for raw in _logits(model, *one)]
    padded = inputs["input_ids"].masked_fill(attention == 0, padding)
    return _logits(model, output, {**inputs, "input_ids": padded})


def classify_tokens(model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
    """Logits of a token classifier, shape (tokens, labels) a row, padding cut off."""
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return [logits[:length] for logits, length in zip(_logits(model, output, inputs), lengths, strict=True)]


def _logits(model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
    return list(model(output, inputs).logits.float().cpu().numpy())


def _rows(output: ModelOutput | None, inputs: Inputs) -> Iterator[tuple[ModelOutput | None, Inputs]]:
    """Each row of a batch alone, without its padding, with its part of the backbone's output."""
    for i, length in enumerate(inputs["attention_mask"].sum(dim=1).tolist()):
        row = slice(i, i + 1)
        alone = {name: tensor[row, :length] for name, tensor in inputs.items()}
        yield None if output is None else cut(output, row, length), alone


def sigmoid(logits: Float64) -> Float64:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def softmax(logits: Float64) -> Float64:
    """Along the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))

"""What kinds with a classification head share: its logits, and the functions that make scores of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from serving.pipelines.base import Raw

Float64 = npt.NDArray[np.float64]


def classify(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
    """Logits of a sequence classifier, shape (labels,) a row."""
    return list(model(**batch).logits.float().cpu().numpy())


def sigmoid(logits: Float64) -> Float64:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def softmax(logits: Float64) -> Float64:
    """Along the last axis."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))

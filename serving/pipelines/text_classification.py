"""Text classification: scores of all labels, the highest first, as Transformers' pipeline computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PretrainedConfig, PreTrainedModel

from serving.pipelines.base import Parameters, Raw


class ClassificationParameters(Parameters):
    top_k: int | None = Field(None, ge=1, description="only the k highest labels; all by default")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="default: by the task's problem_type, sigmoid for a single label"
    )


class TextClassification:
    kind = "text-classification"
    parameters = ClassificationParameters

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """Logits, shape (labels,) a row."""
        return list(model(**batch).logits.float().cpu().numpy())

    def present(
        self, raw: Raw, config: PretrainedConfig, pooling: str | None, parameters: ClassificationParameters
    ) -> list[dict[str, Any]]:
        scores = _scores(raw.astype(np.float64), parameters.function_to_apply or _function(config))
        order = np.argsort(-scores, kind="stable")[: parameters.top_k]
        labels: Mapping[Any, str] = config.id2label or {}
        return [{"label": labels[int(i)], "score": float(scores[i])} for i in order]


def _function(config: PretrainedConfig) -> str:
    if config.problem_type == "regression":
        return "none"
    return "sigmoid" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "softmax"


def _scores(logits: np.ndarray[Any, np.dtype[np.float64]], function: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    if function == "none":
        return logits
    if function == "sigmoid":
        probabilities: np.ndarray[Any, np.dtype[np.float64]] = np.exp(-np.logaddexp(0.0, -logits))
        return probabilities
    exponents = np.exp(logits - logits.max())
    shares: np.ndarray[Any, np.dtype[np.float64]] = exponents / exponents.sum()
    return shares

"""Feature extraction: one vector a text, or one a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PretrainedConfig, PreTrainedModel

from serving.pipelines.base import Parameters, Raw


class FeatureParameters(Parameters):
    pooling: Literal["mean", "cls", "last", "none"] | None = Field(
        None, description="how token vectors become one; default: the task's own, else mean"
    )
    normalize: bool = Field(False, description="scale vectors to length 1")


class FeatureExtraction:
    kind = "feature-extraction"
    parameters = FeatureParameters

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """Last hidden states, shape (tokens, width) a row, padding cut off."""
        states = model(**batch).last_hidden_state.float().cpu().numpy()
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        return [state[:length] for state, length in zip(states, lengths, strict=True)]

    def present(self, raw: Raw, config: PretrainedConfig, pooling: str | None, parameters: FeatureParameters) -> Any:
        vectors = _pool(raw, parameters.pooling or pooling or "mean")
        if parameters.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors.tolist()


def _pool(states: Raw, how: str) -> Raw:
    match how:
        case "none":
            return states
        case "cls":
            return _vector(states[0])
        case "last":
            return _vector(states[-1])
        case _:
            return _vector(states.mean(axis=0))


def _vector(value: Any) -> Raw:
    return np.asarray(value, dtype=np.float32)

"""Sentence embeddings: one vector a text, pooled and normalised as the task's own files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from serving.errors import InvalidInputError
from serving.pipelines.base import Float64, Parameters, Prepared, Raw, TaskSpec, encode_whole, finite
from serving.pipelines.hidden_states import last_hidden_states
from serving.steps import Steps

_SMALLEST_LENGTH = 1e-12


class EmbeddingParameters(Parameters):
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None, description="how token vectors become one; default: the task's own, else mean"
    )
    normalize: bool | None = Field(None, description="scale vectors to length 1; default: the task's own, else not")
    dimensions: int | None = Field(None, ge=1, description="only the first so many, for models trained for that")


class SentenceEmbeddings:
    kind = "sentence-embeddings"
    head = "feature-extraction"
    input = str
    parameters = EmbeddingParameters

    def prepare(self, inputs: Sequence[str], task: TaskSpec, parameters: EmbeddingParameters) -> Steps[list[Prepared]]:
        return encode_whole(inputs, task, parameters)

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """Last hidden states, shape (tokens, width) a row."""
        return last_hidden_states(model, batch)

    def present(self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: EmbeddingParameters) -> Any:
        states = finite(raws[0])
        width, wanted = states.shape[-1], parameters.dimensions
        if wanted and wanted > width:
            raise InvalidInputError(f"dimensions: found {wanted}, but the model's vectors have {width}")
        vector = _pool(states, parameters.pooling or task.pooling or "mean")[:wanted]
        normalize = task.normalize if parameters.normalize is None else parameters.normalize
        return (vector / max(float(np.linalg.norm(vector)), _SMALLEST_LENGTH) if normalize else vector).tolist()


def _pool(states: Float64, how: str) -> Float64:
    """Special tokens count as the others do, as in sentence-transformers."""
    match how:
        case "cls":
            return np.asarray(states[0])
        case "last":
            return np.asarray(states[-1])
        case _:
            return np.asarray(states.mean(axis=0))

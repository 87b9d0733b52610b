"""Sentence embeddings: one vector a text, pooled and normalised as the task's own files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, InstanceOf
from transformers import PreTrainedModel

from serving.errors import InvalidInputError
from serving.pipelines.base import Float64, Parameters, Prepared, Probe, Raw, TaskSpec, encode_whole, finite
from serving.pipelines.hidden_states import last_hidden_states
from serving.pipelines.token_ids import TokenIds, encode_ids

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
    input = str | InstanceOf[TokenIds]  # no JSON is token ids by itself: a protocol makes them, where it may
    parameters = EmbeddingParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe(text) for text in texts]

    def prepare(
        self, inputs: Sequence[str | TokenIds], task: TaskSpec, parameters: EmbeddingParameters
    ) -> list[Prepared]:
        """Encode texts, or take over token ids; a request has the one or the other."""
        given = [one for one in inputs if isinstance(one, TokenIds)]
        if not given:
            return encode_whole([one for one in inputs if isinstance(one, str)], task, parameters)
        if len(given) < len(inputs):
            raise InvalidInputError("inputs: found texts and token ids in one request; send the one or the other")
        return encode_ids(given, task)

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

"""Rerank: texts in order of their relevance to a query, judged by a cross-encoder.

A cross-encoder is a classifier of pairs with one logit; scores and answers are those of text-embeddings-inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PretrainedConfig, PreTrainedModel

from serving.errors import InvalidInputError
from serving.pipelines.base import (
    Parameters,
    Prepared,
    Raw,
    TaskSpec,
    TokenBudget,
    encode_parts,
    finite,
    refuse_unfit,
    refusing_too_long,
)
from serving.pipelines.logits import classify, sigmoid
from serving.steps import Steps

_MOST_TEXTS = 1000


class RerankInput(BaseModel):
    """A query, and the texts to put in order."""

    model_config = ConfigDict(extra="forbid")

    query: str
    texts: list[str] = Field(min_length=1, max_length=_MOST_TEXTS)


class RerankParameters(Parameters):
    raw_scores: bool = Field(False, description="give logits as scores; else their sigmoid")
    return_text: bool = Field(False, description="give the texts again beside their scores")
    top_n: int | None = Field(None, ge=1, description="only the n most relevant texts; all by default")


class Rerank:
    kind = "rerank"
    head = "text-classification"
    input = RerankInput
    parameters = RerankParameters

    def prepare(
        self, inputs: Sequence[RerankInput], task: TaskSpec, parameters: RerankParameters
    ) -> Steps[list[Prepared]]:
        _refuse_unless_one_logit(task.config)
        budget = TokenBudget()
        prepared = []
        for where, one in enumerate(inputs):
            (query,) = yield from encode_parts([one.query], f"inputs.{where}.query", task)
            texts = yield from encode_parts(one.texts, f"inputs.{where}.texts.{{}}", task)
            rows = []
            for which, text in enumerate(texts):
                with refusing_too_long(f"inputs.{where}.texts.{which}"):
                    rows.append(task.encoder.pair(query, text))
                refuse_unfit(rows[-1], f"inputs.{where}.texts.{which}", task, parameters)
                budget.spend(rows[-1])
            prepared.append(Prepared(rows, any(row.truncated for row in rows), one.texts))
        return prepared

    def forward(self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> list[Raw]:
        """The logit, shape (1,) a row."""
        return classify(model, batch)

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: RerankParameters
    ) -> list[dict[str, Any]]:
        logits = finite(np.concatenate(raws))
        scores = logits if parameters.raw_scores else sigmoid(logits)
        order = np.argsort(-logits, kind="stable")[: parameters.top_n].tolist()
        ranked: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
        if parameters.return_text:
            ranked = [{**one, "text": prepared.source[one["index"]]} for one in ranked]
        return ranked


def _refuse_unless_one_logit(config: PretrainedConfig) -> None:
    """Which of several logits is relevance no config says; sentence-transformers and TEI refuse such heads too."""
    if config.num_labels != 1:
        raise InvalidInputError(
            f"kind 'rerank' needs a task with one label, whose logit is a pair's relevance; this task has "
            f"{config.num_labels}: ask it for 'text-classification' of pairs"
        )

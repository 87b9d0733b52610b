"""Rerank: texts in order of their relevance to a query, judged by a cross-encoder.

A cross-encoder is a classifier of pairs with one logit. Unless asked for otherwise, its scores are those of
sentence-transformers' `CrossEncoder`; answers have the form of text-embeddings-inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from ken_core.tokenization import Encoded, Part
from serving.errors import InvalidInputError
from serving.incoming import Incoming
from serving.pipelines.base import (
    Parameters,
    Pipeline,
    Prepared,
    Probe,
    Raw,
    TaskSpec,
    TokenBudget,
    encode_parts,
    finite,
    refuse_unfit,
    refusing_too_long,
)
from serving.pipelines.logits import classify, sigmoid
from serving.workers.steps import Steps

_MOST_TEXTS = 1000
_DEFAULT = "torch.nn.modules.activation.Sigmoid"
_SIGMOIDS = {_DEFAULT, "torch.nn.Sigmoid"}
_LOGITS = {"torch.nn.modules.linear.Identity", "torch.nn.Identity"}


class RerankInput(Incoming):
    """A query, and the texts to put in order."""

    query: str
    texts: list[str] = Field(min_length=1, max_length=_MOST_TEXTS)


class RerankParameters(Parameters):
    raw_scores: bool | None = Field(
        None, description="true: logits as scores; false: their sigmoid; by default as the task's CrossEncoder has it"
    )
    return_text: bool = Field(False, description="give the texts again beside their scores")
    top_n: int | None = Field(None, ge=1, description="only the n most relevant texts; all by default")
    max_tokens_per_text: int | None = Field(
        None, ge=1, description="cut each text to so many tokens; by default only as the model's length needs it"
    )


class Rerank:
    kind = "rerank"
    head = "text-classification"
    encodes_by_tokenizer_alone = False  # refuses heads of several labels
    input = RerankInput
    parameters = RerankParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        return [Probe({"query": text, "texts": list(texts)}) for text in texts[:2]]

    def prepare(
        self, inputs: Sequence[RerankInput], task: TaskSpec, parameters: RerankParameters
    ) -> Steps[list[Prepared]]:
        _refuse_unless_one_logit(task.config)
        _gives_logits(parameters, task.config)
        budget = TokenBudget()
        prepared = []
        for where, one in enumerate(inputs):
            (query,) = yield from encode_parts([one.query], f"inputs.{where}.query", task)
            texts = yield from encode_parts(one.texts, f"inputs.{where}.texts.{{}}", task)
            rows = []
            for which, text in enumerate(texts):
                with refusing_too_long(f"inputs.{where}.texts.{which}"):
                    rows.append(_row(query, text, task, parameters.max_tokens_per_text))
                refuse_unfit(rows[-1], f"inputs.{where}.texts.{which}", task, parameters)
                budget.spend(rows[-1])
            prepared.append(Prepared(rows, any(row.truncated for row in rows), one.texts))
        return prepared

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """The logit, shape (1,) a row."""
        return classify(model, output, inputs)

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: RerankParameters
    ) -> list[dict[str, Any]]:
        logits = finite(np.concatenate(raws))
        scores = logits if _gives_logits(parameters, task.config) else sigmoid(logits)
        order = np.argsort(-logits, kind="stable")[: parameters.top_n].tolist()
        ranked: list[dict[str, Any]] = [{"index": i, "score": float(scores[i])} for i in order]
        if parameters.return_text:
            ranked = [{**one, "text": prepared.source[one["index"]]} for one in ranked]
        return ranked


PIPELINE: Pipeline = Rerank()


def _row(query: Part, text: Part, task: TaskSpec, most: int | None) -> Encoded:
    """A query with a text, of which at most so many tokens are taken."""
    shortened = text if most is None else task.encoder.shortened(text, most)
    row = task.encoder.pair(query, shortened)
    return row if shortened is text else replace(row, truncated=True)


def _refuse_unless_one_logit(config: PretrainedConfig) -> None:
    """No config says which of several logits is the relevance; sentence-transformers and TEI refuse such heads too."""
    if config.num_labels != 1:
        raise InvalidInputError(
            f"kind 'rerank' needs a task with one label, whose logit is a pair's relevance; this task has "
            f"{config.num_labels}: ask it for 'text-classification' of pairs"
        )


def _gives_logits(parameters: RerankParameters, config: PretrainedConfig) -> bool:
    """Whether scores are logits, or else their sigmoid.

    Raises:
        InvalidInputError: the parameters leave the choice to the task, whose own function is neither of the two.
    """
    if parameters.raw_scores is not None:
        return parameters.raw_scores
    activation = _activation(config)
    if activation not in _LOGITS | _SIGMOIDS:
        raise InvalidInputError(
            f"this task's CrossEncoder makes scores with {activation[:100]!r}, which is not served; ask "
            "with raw_scores true for logits or false for their sigmoid",
            at="raw_scores",
        )
    return activation in _LOGITS


def _activation(config: PretrainedConfig) -> str:
    """What `CrossEncoder` applies to logits, where it runs no code of the checkpoint's own."""
    ours = getattr(config, "sentence_transformers", None)
    named = ours.get("activation_fn") if isinstance(ours, dict) else None
    named = named or getattr(config, "sbert_ce_default_activation_function", None)
    return named if isinstance(named, str) and named.startswith("torch.") else _DEFAULT

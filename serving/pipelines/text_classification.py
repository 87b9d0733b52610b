"""Text classification: scores of all labels, the highest first, as Transformers' pipeline computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field
from transformers.utils.generic import ModelOutput

from ken_core.heads import Grafted
from ken_core.stand_in import Inputs
from ken_core.tokenization import Input
from serving.pipelines.base import (
    Float64,
    Parameters,
    Pipeline,
    Prepared,
    Probe,
    Raw,
    TaskSpec,
    TextPair,
    encode_whole,
    finite,
)
from serving.pipelines.logits import classify, sigmoid, softmax
from serving.routing.answer_form import score_function
from serving.workers.steps import Steps

_FUNCTIONS: dict[str, Callable[[Float64], Float64]] = {"softmax": softmax, "sigmoid": sigmoid, "none": np.asarray}


class ClassificationParameters(Parameters):
    top_k: int | None = Field(None, ge=1, description="only the k highest labels; all by default")
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="default: by the task's problem_type, sigmoid for a single label"
    )


class TextClassification:
    kind = head = "text-classification"
    encodes_by_tokenizer_alone = True
    input = str | TextPair
    parameters = ClassificationParameters

    def probes(self, texts: Sequence[str]) -> list[Probe]:
        pairs = [{"text": text, "text_pair": texts[i - 1]} for i, text in enumerate(texts)]
        return [Probe(one) for one in (*texts, *pairs)]

    def prepare(
        self, inputs: Sequence[str | TextPair], task: TaskSpec, parameters: ClassificationParameters
    ) -> Steps[list[Prepared]]:
        return encode_whole([_asked(item) for item in inputs], task, parameters)

    def run_head(self, model: Grafted, output: ModelOutput | None, inputs: Inputs) -> list[Raw]:
        """Logits, shape (labels,) a row."""
        return classify(model, output, inputs)

    def present(
        self, prepared: Prepared, raws: Sequence[Raw], task: TaskSpec, parameters: ClassificationParameters
    ) -> list[dict[str, Any]]:
        function = parameters.function_to_apply or score_function(task.config.problem_type, task.config.num_labels)
        scores = _FUNCTIONS[function](finite(raws[0]))
        order = np.argsort(-scores, kind="stable")[: parameters.top_k]
        labels: Mapping[Any, str] = task.config.id2label or {}
        return [{"label": labels[int(i)], "score": float(scores[i])} for i in order]


PIPELINE: Pipeline = TextClassification()


def _asked(item: str | TextPair) -> Input:
    """An empty second text is none, as Transformers' pipeline has it."""
    if isinstance(item, str):
        return item
    return (item.text, item.text_pair) if item.text_pair else item.text

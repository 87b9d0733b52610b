"""Hugging Face's inference protocol: ``POST /models/{task}``, as ``huggingface_hub.InferenceClient`` speaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from ken_core.embedding import PromptName
from serving.api.asking import ModelName, ask
from serving.api.bodies import body_of
from serving.api.examples import LABELS
from serving.api.predicting import Predictor, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, exemplified
from serving.api.protocol import Protocol
from serving.api.tei import PROMPT_NAME, TruncatingBody, failing, shape
from serving.incoming import Free, Incoming
from serving.kinds import KINDS
from serving.pipelines.base import check
from serving.service import Service

_ZERO_SHOT = "zero-shot-classification"


class SimilarityInput(Incoming):
    """The inputs of sentence similarity: a sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str] = Field(min_length=1)


class InferenceRequest(TruncatingBody):
    """Inputs for a task. Hugging Face's client sends the parameters of feature extraction beside `parameters`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "How far is it to Denver?", "parameters": {"top_k": 1}}]},
    )

    inputs: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="one input or a list of inputs: texts, or objects with the fields of the task's kind; an object of "
        "source_sentence and sentences asks how similar they are"
    )
    parameters: Free = Field(
        {}, description="the kind's parameters; with candidate_labels the kind is zero-shot classification"
    )
    options: Free = Field({}, description="options of Hugging Face's own queue and cache, without effect here")
    normalize: bool | None = Field(None, description="scale embeddings to length 1")
    dimensions: int | None = Field(
        None, ge=1, description="cut embeddings to this many numbers, for models trained for that"
    )
    prompt_name: PromptName | None = Field(None, description=PROMPT_NAME)
    encoding_format: Literal["float"] | None = None

    def task_query(self) -> TaskQuery:
        vectors = {"normalize": self.normalize, "dimensions": self.dimensions, "prompt_name": self.prompt_name}
        beside = {name: value for name, value in vectors.items() if value is not None} | self.truncation
        parameters = {**self.parameters, **beside}
        if self._compares:
            one = check(SimilarityInput, self.inputs)
            return TaskQuery(
                [one.source_sentence, *one.sentences], parameters | {"normalize": True}, "sentence-embeddings"
            )
        kind = _ZERO_SHOT if "candidate_labels" in parameters else None
        return TaskQuery(self.inputs if isinstance(self.inputs, list) else [self.inputs], parameters, kind)

    def present(self, kind: str, outputs: Sequence[Any]) -> Any:
        """The content of the HTTP answer, made of one output for each input."""
        if self._compares:
            source, *others = np.asarray(outputs)
            return [float(source @ other) for other in others]
        if kind == _ZERO_SHOT:
            outputs = [_labelled(output) for output in outputs]
        return outputs if isinstance(self.inputs, list) or KINDS[kind].listed else outputs[0]

    @property
    def _compares(self) -> bool:
        return isinstance(self.inputs, dict) and "source_sentence" in self.inputs


def _labelled(output: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pairs of label and score, which the client reads. The kind gives two lists, as Transformers' pipeline does."""
    return [{"label": label, "score": score} for label, score in zip(output["labels"], output["scores"], strict=True)]


def router(service: Service, predictor: Predictor) -> APIRouter:
    """The route of Hugging Face's inference protocol."""
    routes = APIRouter(tags=["huggingface"])

    @routes.post(
        "/models/{task}",
        response_model=list[Any] | dict[str, Any],
        openapi_extra=body_of(InferenceRequest),
        responses=failing(*PREDICTION_FAILURES) | exemplified([LABELS]),
    )
    async def infer(task: ModelName, request: Request) -> Response:
        """Answer one or many inputs with a task, in the form that Hugging Face's client reads for the task's kind."""
        body, answered = await ask(predictor, request, InferenceRequest, task)
        content = body.present(answered.prediction.kind, answered.prediction.outputs)
        return Response(orjson.dumps(content), headers=answered.headers, media_type="application/json")

    return routes


PROTOCOL = Protocol(router, ("/models",), shape, failing)

"""Hugging Face's inference protocol: ``POST /models/{task}``, as ``huggingface_hub.InferenceClient`` speaks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ConfigDict, Field
from starlette.types import Receive, Scope, Send

from ken_core.embedding import PromptName
from serving.api import event_stream
from serving.api.asking import ModelName
from serving.api.bodies import body_of, read_body, read_json
from serving.api.examples import LABELS
from serving.api.generating import Generator, TaskGeneration
from serving.api.huggingface_generation import TextGenerationRequest
from serving.api.openai_answers import ChatCompletion
from serving.api.openai_generation import ChatRequest
from serving.api.predicting import Predictor, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, exemplified
from serving.api.protocol import Protocol
from serving.api.streamed import streamed
from serving.api.tei import PROMPT_NAME, TruncatingBody, failing, shape
from serving.errors import InvalidInputError
from serving.incoming import Free, Incoming
from serving.pipelines.base import check
from serving.routing.kinds import KINDS
from serving.service import Service

_ZERO_SHOT = "zero-shot-classification"
_GENERATION = "text-generation"
_MOST_KNOWN = 10_000
_JSON = "application/json"


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
    stream: bool = Field(
        False, description="whether a language model's text is sent as it comes, as server-sent events"
    )

    def task_query(self) -> TaskQuery:
        if self.stream:
            raise InvalidInputError("only language models send their answers bit by bit; send false", at="stream")
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


@dataclass(frozen=True)
class _Unread:
    """A body whose form depends on what its task answers, as the path names the task."""

    plain: Any
    task: None = None
    key: None = None


class _Kinds:
    """What deltas answer. A delta must be on the device to tell, so what was told once is remembered."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[str, str] = {}

    async def of(self, digest: str) -> str:
        if digest not in self._known:
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[digest] = await self._service.kind_of(digest)
        return self._known[digest]


def router(service: Service, predictor: Predictor) -> APIRouter:
    """The routes of Hugging Face's inference protocol."""
    routes = APIRouter(tags=["huggingface"])
    generate, kinds = Generator(service, predictor), _Kinds(service)

    @routes.post(
        "/models/{task}",
        response_model=list[Any] | dict[str, Any],
        openapi_extra=body_of(InferenceRequest),
        responses=failing(*PREDICTION_FAILURES) | exemplified([LABELS]),
    )
    async def infer(task: ModelName, request: Request) -> Response:
        """Answer one or many inputs with a task, in the form that Hugging Face's client reads for the task's kind."""

        async def read() -> _Unread:
            return _Unread(await read_json(request))

        async def send_all(scope: Scope, receive: Receive, send: Send) -> None:
            async with predictor.taken(request, read, task) as taken:
                plain = taken.question.plain
                if await kinds.of(taken.resolved.digest) == _GENERATION:
                    asked = check(TextGenerationRequest, plain).generation()
                    await generate.answer(taken.asking(asked), scope, receive, send)
                    return
                body = check(InferenceRequest, plain)
                answered = await predictor.predict(taken.asking(body.task_query()))
            content = body.present(answered.prediction.kind, answered.prediction.outputs)
            await Response(orjson.dumps(content), headers=answered.headers, media_type=_JSON)(scope, receive, send)

        return event_stream.SentByItself(send_all)

    @routes.post(
        "/models/{task}/v1/chat/completions",
        response_model=ChatCompletion,
        openapi_extra=body_of(ChatRequest),
        responses=failing(*PREDICTION_FAILURES) | streamed("data: {chunk}, and at last data: [DONE]"),
    )
    async def chat(task: ModelName, request: Request) -> Response:
        """Answer the last of some messages, as ``InferenceClient.chat_completion`` asks. The model is the path's."""

        async def read() -> TaskGeneration:
            return (await read_body(request, ChatRequest)).generation(shape)

        return generate(request, read, task)

    return routes


PROTOCOL = Protocol(router, ("/models",), shape, failing)

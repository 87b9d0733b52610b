"""OpenAI's protocol: ``/v1/models`` and ``/v1/embeddings``. A task is a model."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from serving.api.asking import ModelName, QueryBody, Texts, TextsOrTokenIds, ask
from serving.api.bodies import body_of
from serving.api.failures import Failure
from serving.api.merging import ModelOrMerge
from serving.api.predicting import Predictor, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, headers_of, responses
from serving.api.protocol import Protocol
from serving.errors import UnknownTaskError
from serving.service import Service

_OWNER = "ken-serve"


class EmbeddingsRequest(QueryBody):
    """Texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "faq-search", "input": ["How far is it to Denver?"]}]},
    )

    model: ModelOrMerge = Field(description="a task, or task@alias; or tasks to merge for this request")
    input: Texts = Field(description="texts, not token ids; a text longer than the task takes is cut")
    encoding_format: Literal["float", "base64"] = Field(
        "float", description="base64: little-endian float32 numbers, encoded"
    )
    dimensions: int | None = Field(
        None, ge=1, description="cut embeddings to this many numbers, for models trained for that"
    )
    user: str | None = Field(
        None, description="an end user, who gets the same version throughout while a route splits the task's traffic"
    )

    def task_query(self) -> TaskQuery:
        parameters = {} if self.dimensions is None else {"dimensions": self.dimensions}
        return TaskQuery(self.input, parameters, "sentence-embeddings", self.model, self.user)


class EmbeddingsOfTokensRequest(EmbeddingsRequest):
    """Texts to embed, or the task's own token ids."""

    input: TextsOrTokenIds = Field(
        description="texts, or token ids as the task's own tokenizer gives them, special tokens included; of what is "
        "longer than the task takes, texts are cut and token ids are refused"
    )


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="a string where base64 was asked for")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="tokens of all texts, special tokens included")
    total_tokens: int


class Embeddings(BaseModel):
    """One embedding for each text, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str = Field(description="the model as the request names it; the digest of a merge")
    usage: Usage


class Model(BaseModel):
    """A task."""

    id: str = Field(description="the task, or task@alias if the request names that")
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="always 0, since it is not known")
    owned_by: str = _OWNER


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Error(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the field of the request that is wrong, if one is")
    code: str | None


class ErrorAnswer(BaseModel):
    """A failure as OpenAI's clients read it."""

    error: Error


_JSON = "application/json"


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of OpenAI's protocol."""
    routes = APIRouter(prefix="/v1", tags=["openai"])
    form = EmbeddingsOfTokensRequest if service.settings.accept_token_ids else EmbeddingsRequest

    @routes.post(
        "/embeddings",
        response_model=Embeddings,
        openapi_extra=body_of(form),
        responses=failing(*PREDICTION_FAILURES),
    )
    async def embeddings(request: Request) -> Response:
        """Embed one or many texts with a task."""
        body, answered = await ask(predictor, request, form)
        prediction = answered.prediction
        encode = _base64 if body.encoding_format == "base64" else list
        content = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": encode(vector)}
                for i, vector in enumerate(prediction.outputs)
            ],
            "model": body.model if isinstance(body.model, str) else prediction.digest,
            "usage": {"prompt_tokens": prediction.tokens, "total_tokens": prediction.tokens},
        }
        return Response(orjson.dumps(content), headers=answered.headers, media_type=_JSON)

    @routes.get("/models", responses=failing(401))
    async def models(request: Request) -> Models:
        """All tasks that the key may query."""
        return Models(data=[Model(id=task.name) for task in predictor.resolve.visible(request)])

    @routes.get("/models/{model}", responses=failing(401))
    async def retrieve(model: ModelName, request: Request) -> Model:
        """One task."""
        if "@" in model:
            predictor.resolve(request, model)
        else:
            predictor.resolve.find(request, model)
        return Model(id=model)

    return routes


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()


_STATUSES = {422: 400, 501: 400}
"""OpenAI answers 400 to every request that it cannot take, and its clients repeat requests that got a 501."""


def shape(failure: Failure) -> JSONResponse:
    """A failure as OpenAI's clients read it."""
    status = _STATUSES.get(failure.status, failure.status)
    error = Error(message=failure.detail, type=_type(status), param=_param(failure), code=failure.code)
    return JSONResponse(ErrorAnswer(error=error).model_dump(), status, headers_of(failure))


_NO_FIELDS = ("", "body", "header", "inputs", "path", "query", "truncation_side")
"""What errors of all protocols may name and no request of this one has."""


_WITH_INNER = ("response_format", "structured_outputs", "tools")
"""Fields of which clients write so much that they should know which part is wrong."""


def _param(failure: Failure) -> str | None:
    """The field of the request that is wrong. Errors say ``inputs.3`` in every protocol; this one has an `input`."""
    if failure.code == UnknownTaskError.code:
        return "model"
    field, _, inner = (failure.at or "").partition(".")
    if field == "inputs" and inner[:1].isdigit():
        return "input"
    if field in _WITH_INNER:
        return failure.at
    return field if field not in _NO_FIELDS else None


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def failing(*statuses: int) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail with these statuses."""
    told = (_STATUSES.get(status, status) for status in statuses)
    return responses(*told, schema=ErrorAnswer, media_type=_JSON)


PROTOCOL = Protocol(router, ("/v1/models", "/v1/embeddings"), shape, failing)

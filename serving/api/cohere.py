"""Cohere's protocol for reranking: ``/v2/rerank`` and ``/v1/rerank``, as its own client, LangChain and LiteLLM send it.

https://docs.cohere.com/reference/rerank. A task is a model. Jina's and vLLM's ``/v1/rerank`` have the same form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from serving.api.asking import QueryBody, ask
from serving.api.bodies import body_of
from serving.api.failures import Failure, request_id
from serving.api.merging import ModelOrMerge
from serving.api.predicting import Predictor, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, headers_of, responses
from serving.api.protocol import Protocol
from serving.api.unserved import WithForeignFields
from serving.service import Service

_JSON = "application/json"


def _documents(plain: Any) -> Any:
    """Refuses all but texts and objects with a text, of which nothing else is read."""
    if not isinstance(plain, list):
        raise PydanticCustomError("documents", "expected a list of texts, or of objects with a text")
    for place, one in enumerate(plain):
        if not isinstance(one.get("text") if isinstance(one, dict) else one, str):
            raise PydanticCustomError(
                "documents", "expected a text, or an object with a text, at place {place}", {"place": place}
            )
    return plain


_object = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
Documents = Annotated[
    list[Any],
    BeforeValidator(_documents),
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "string"}, _object]}, "minItems": 1}),
]


class CohereRerankRequest(WithForeignFields, QueryBody):
    """Documents to sort by how well they answer a query."""

    WITHOUT_EFFECT = frozenset({"priority"})
    ONLY_AT: ClassVar[Mapping[str, Sequence[Any]]] = {
        "rank_fields": [["text"]],
        "max_chunks_per_doc": [1],
        "instruction": [],
    }

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "passages",
                    "query": "How far is it to Denver?",
                    "documents": ["Denver is 200 miles away.", "I like rain."],
                    "top_n": 1,
                }
            ]
        },
    )

    model: ModelOrMerge = Field(description="a task, or task@alias; or tasks to merge for this request")
    query: str
    documents: Documents = Field(min_length=1, description="texts, or objects whose text is read")
    top_n: int | None = Field(None, ge=1, description="only the n most relevant documents; all by default")
    max_tokens_per_doc: int | None = Field(
        None, ge=1, description="cut each document to so many tokens of the task's own tokenizer"
    )
    return_documents: bool = Field(False, description="give each document beside its score")

    def task_query(self) -> TaskQuery:
        texts = [one if isinstance(one, str) else one["text"] for one in self.documents]
        parameters = {
            "raw_scores": False,
            "top_n": self.top_n,
            "max_tokens_per_text": self.max_tokens_per_doc,
        }
        return TaskQuery([{"query": self.query, "texts": texts}], parameters, "rerank", self.model)


class RankedDocument(BaseModel):
    index: int = Field(description="the document's position in the request")
    relevance_score: float = Field(ge=0, le=1)
    document: dict[str, Any] | None = Field(
        None, description="the document as an object, if return_documents asks for it"
    )


class ApiVersion(BaseModel):
    version: str


class InputTokens(BaseModel):
    input_tokens: int = Field(description="tokens of all pairs of query and document, special tokens included")


class RerankMeta(BaseModel):
    api_version: ApiVersion
    tokens: InputTokens


class RerankUsage(BaseModel):
    total_tokens: int = Field(description="as `input_tokens`")


class RankedDocuments(BaseModel):
    """The documents, the most relevant first. Clients of Jina and vLLM read `model` and `usage` too."""

    id: str | None = Field(description="the request's id, as in `X-Request-Id`")
    results: list[RankedDocument]
    meta: RerankMeta
    model: str = Field(description="the model as the request names it; the digest of a merge")
    usage: RerankUsage


class CohereError(BaseModel):
    """A failure as Cohere's clients read it."""

    message: str


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of Cohere's protocol."""
    routes = APIRouter(tags=["cohere"])

    def route(version: str) -> None:
        async def rerank(request: Request) -> Response:
            body, answered = await ask(predictor, request, CohereRerankRequest)
            prediction = answered.prediction
            content = {
                "id": request_id(request.scope),
                "results": [_ranked(body, **one) for one in prediction.outputs[0]],
                "meta": {"api_version": {"version": version}, "tokens": {"input_tokens": prediction.tokens}},
                "model": body.model if isinstance(body.model, str) else prediction.digest,
                "usage": {"total_tokens": prediction.tokens},
            }
            return Response(orjson.dumps(content), headers=answered.headers, media_type=_JSON)

        routes.add_api_route(
            f"/v{version}/rerank",
            rerank,
            methods=["POST"],
            summary=f"Rerank, version {version}",
            description=CohereRerankRequest.__doc__ or "",
            response_model=RankedDocuments,
            responses=failing(*PREDICTION_FAILURES),
            openapi_extra=body_of(CohereRerankRequest),
        )

    route("2")
    route("1")
    return routes


def _ranked(body: CohereRerankRequest, index: int, score: float) -> dict[str, Any]:
    ranked: dict[str, Any] = {"index": index, "relevance_score": score}
    if not body.return_documents:
        return ranked
    document = body.documents[index]
    return {**ranked, "document": {"text": document} if isinstance(document, str) else document}


_STATUSES = {501: 400}
"""Cohere's client repeats requests that got a 5xx."""


def shape(failure: Failure) -> JSONResponse:
    """A failure as Cohere's clients read it."""
    status = _STATUSES.get(failure.status, failure.status)
    return JSONResponse(CohereError(message=failure.detail).model_dump(), status, headers_of(failure))


def failing(*statuses: int) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail with these statuses."""
    told = (_STATUSES.get(status, status) for status in statuses)
    return responses(*told, schema=CohereError, media_type=_JSON)


PROTOCOL = Protocol(router, ("/v2/rerank", "/v1/rerank"), shape, failing)

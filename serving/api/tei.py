"""The protocol of Hugging Face's text-embeddings-inference: ``/embed``, ``/predict``, ``/rerank`` and ``/info``.

A server of text-embeddings-inference holds one model. Here the path (``/models/{task}/embed``), the body's ``model`` or
the header ``X-Ken-Task`` names the task.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from ken_core.embedding import PromptName
from serving.api.asking import ModelName, QueryBody, Texts, TextsOrTokenIds, ask
from serving.api.bodies import body_of
from serving.api.document import CHOOSING
from serving.api.examples import EMBEDDINGS, LABELS, RANKS
from serving.api.failures import Failure
from serving.api.merging import ModelOrMerge
from serving.api.predicting import Predictor, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, exemplified, headers_of, responses
from serving.api.protocol import Protocol
from serving.service import Service

PROMPT_NAME = (
    "name of one of the task's own prompts, which is put before every text; by default the task's default prompt"
)


def _side(plain: Any) -> Any:
    return plain.lower() if isinstance(plain, str) else plain


class TruncatingBody(QueryBody):
    """A query that may say what to do with inputs longer than the task takes."""

    truncate: bool | None = Field(None, description="cut inputs that are too long (the default), or refuse them")
    truncation_direction: Annotated[Literal["left", "right"] | None, BeforeValidator(_side)] = Field(
        None, description="the end that is cut: must be the one that the task's tokenizer cuts"
    )

    @property
    def truncation(self) -> dict[str, Any]:
        """The fields as parameters of a kind."""
        asked = {"truncation": self.truncate, "truncation_side": self.truncation_direction}
        return {name: value for name, value in asked.items() if value is not None}


class _TeiRequest(TruncatingBody):
    model: ModelOrMerge | None = Field(
        None,
        description="a task, or task@alias, if neither the path nor a header names one; or tasks to merge for this "
        "request",
    )

    @abstractmethod
    def present(self, outputs: Sequence[Any]) -> Any:
        """The content of the HTTP answer, made of one output for each input."""


class EmbedRequest(_TeiRequest):
    """Texts to embed."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": ["How far is it to Denver?"], "normalize": True}]}
    )

    inputs: Texts
    normalize: bool = Field(True, description="scale embeddings to length 1")
    dimensions: int | None = Field(
        None, ge=1, description="cut embeddings to this many numbers, for models trained for that"
    )
    prompt_name: PromptName | None = Field(None, description=PROMPT_NAME)

    def task_query(self) -> TaskQuery:
        parameters = {
            "normalize": self.normalize,
            "dimensions": self.dimensions,
            "prompt_name": self.prompt_name,
            **self.truncation,
        }
        return TaskQuery(self.inputs, parameters, "sentence-embeddings", self.model)

    def present(self, outputs: Sequence[Any]) -> Any:
        return outputs


class EmbedTokensRequest(EmbedRequest):
    """Texts to embed, or token ids of the task's own tokenizer."""

    inputs: TextsOrTokenIds


def _sequences(plain: Any) -> Any:
    """Refuses all but a text, a pair, or a list of these. As in TEI, a list of one or two texts is a text or a pair."""
    alone = isinstance(plain, str) or (isinstance(plain, list) and all(isinstance(item, str) for item in plain))
    found = [plain] if alone else plain
    if not isinstance(found, list):
        raise PydanticCustomError("inputs", "expected a text, a pair of texts, or a list of these")
    for item in found:
        texts = [item] if isinstance(item, str) else item
        if not (isinstance(texts, list) and 1 <= len(texts) <= 2 and all(isinstance(text, str) for text in texts)):
            raise PydanticCustomError(
                "inputs", "expected a text, a pair [text, text], or a list of [text] and [text, text]"
            )
    return plain


_texts = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}
Sequences = Annotated[
    Any,
    BeforeValidator(_sequences),
    WithJsonSchema({"anyOf": [{"type": "string"}, _texts, {"type": "array", "items": _texts, "minItems": 1}]}),
]


class ClassifyRequest(_TeiRequest):
    """Texts, or pairs of texts, to classify: ``[text, text]`` is one pair, ``[[text], [text]]`` are two texts."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"inputs": "How far is it to Denver?", "raw_scores": False}]}
    )

    inputs: Sequences
    raw_scores: bool = Field(False, description="give logits in place of probabilities")

    def task_query(self) -> TaskQuery:
        sequences = [self.inputs] if self._alone else self.inputs
        parameters = {"function_to_apply": "none"} if self.raw_scores else {}
        inputs = [_classified(sequence) for sequence in sequences]
        return TaskQuery(inputs, {**parameters, **self.truncation}, "text-classification", self.model)

    def present(self, outputs: Sequence[Any]) -> Any:
        return outputs[0] if self._alone else outputs

    @property
    def _alone(self) -> bool:
        return isinstance(self.inputs, str) or all(isinstance(item, str) for item in self.inputs)


def _classified(sequence: str | list[str]) -> str | dict[str, str]:
    match sequence:
        case str():
            return sequence
        case [text]:
            return text
        case _:
            return {"text": sequence[0], "text_pair": sequence[1]}


class RerankRequest(_TeiRequest):
    """Texts to sort by how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"query": "How far is it to Denver?", "texts": ["Denver is 200 miles away.", "I like rain."]}]
        },
    )

    query: str
    texts: list[str] = Field(min_length=1)
    raw_scores: bool = Field(False, description="give logits in place of probabilities")
    return_text: bool = Field(False, description="give each text beside its score")
    top_n: int | None = Field(
        None, ge=1, description="only the n most relevant texts; all by default. Not in the original; LiteLLM sends it"
    )

    def task_query(self) -> TaskQuery:
        parameters = {
            "raw_scores": self.raw_scores,
            "return_text": self.return_text,
            "top_n": self.top_n,
            **self.truncation,
        }
        return TaskQuery([{"query": self.query, "texts": self.texts}], parameters, "rerank", self.model)

    def present(self, outputs: Sequence[Any]) -> Any:
        return outputs[0]


class ScoredLabel(BaseModel):
    label: str
    score: float


class Rank(BaseModel):
    index: int = Field(description="the text's position in the request")
    score: float
    text: str | None = Field(None, description="the text, if return_text asks for it")


class Info(BaseModel):
    """The resident base or a task, and the limits on requests."""

    model_id: str = Field(description="the base, or the task that the path names")
    model_sha: str = Field(description="the base's fingerprint, or the digest of the task's delta")
    model_dtype: str
    max_concurrent_requests: int
    max_input_length: int = Field(description="most tokens of one input: the limit of the task, else of the base")
    max_batch_tokens: int
    max_batch_requests: int
    max_client_batch_size: int = Field(description="most inputs in one request")
    auto_truncate: bool = Field(
        default=True, description="always true: inputs that are too long are cut unless a request says otherwise"
    )
    version: str


class HubError(BaseModel):
    """A failure as Hugging Face's clients read it."""

    error: str
    error_type: Literal["Validation", "Overloaded", "Unhealthy", "Backend"]


_JSON = "application/json"


def shape(failure: Failure) -> JSONResponse:
    """A failure as Hugging Face's clients read it, with the same status as in every protocol."""
    content = HubError(error=failure.detail, error_type=_type(failure.status))
    return JSONResponse(content.model_dump(), failure.status, headers_of(failure))


def failing(*statuses: int) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail with these statuses."""
    return responses(*statuses, schema=HubError, media_type=_JSON)


def _type(status: int) -> Literal["Validation", "Overloaded", "Unhealthy", "Backend"]:
    match status:
        case 429:
            return "Overloaded"
        case 503:
            return "Unhealthy"
    return "Backend" if status >= 500 else "Validation"


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of text-embeddings-inference."""
    routes = APIRouter(tags=["text-embeddings-inference"])

    def route(path: str, form: type[_TeiRequest], answers: Any, example: Any) -> None:
        async def anywhere(request: Request) -> Response:
            return await answer(request, None)

        async def at_task(task: ModelName, request: Request) -> Response:
            return await answer(request, task)

        async def answer(request: Request, task: str | None) -> Response:
            body, answered = await ask(predictor, request, form, task)
            content = body.present(answered.prediction.outputs)
            return Response(orjson.dumps(content), headers=answered.headers, media_type=_JSON)

        for place, handler in ((path, anywhere), (f"/models/{{task}}{path}", at_task)):
            routes.add_api_route(
                place,
                handler,
                methods=["POST"],
                summary=path.removeprefix("/").capitalize(),
                description=form.__doc__ or "",
                response_model=answers,
                responses=failing(*PREDICTION_FAILURES) | exemplified(example),
                openapi_extra=body_of(form),
            )

    embed = EmbedTokensRequest if service.settings.accept_token_ids else EmbedRequest
    route("/embed", embed, list[list[float]], EMBEDDINGS)
    route("/predict", ClassifyRequest, list[ScoredLabel] | list[list[ScoredLabel]], LABELS)
    route("/rerank", RerankRequest, list[Rank], RANKS)

    def info_of(request: Request, name: str, digest: str, longest: int) -> Info:
        settings, resident = service.settings, service.resident
        return Info(
            model_id=name,
            model_sha=digest,
            model_dtype=str(next(resident.backbone.parameters()).dtype).removeprefix("torch."),
            max_concurrent_requests=settings.max_requests,
            max_input_length=longest,
            max_batch_tokens=settings.batch_tokens,
            max_batch_requests=settings.batch_rows,
            max_client_batch_size=settings.max_inputs,
            version=request.app.version,
        )

    @routes.get("/info", responses=failing(401))
    async def info(request: Request) -> Info:
        """The resident base or a task, and the limits on requests."""
        predictor.resolve.authenticate(request)
        resident, longest = service.resident, service.engine.tiers.base_encoder.max_length
        return info_of(request, resident.checkpoint.folder.name, resident.fingerprint.digest, longest)

    @routes.get("/models/{task}/info", responses=failing(401), openapi_extra=CHOOSING)
    async def task_info(task: ModelName, request: Request) -> Info:
        """A task, and the limits on requests to it."""
        found = predictor.resolve(request, task)
        return info_of(request, found.task, found.digest, await service.longest_input(found.digest))

    return routes


PROTOCOL = Protocol(router, ("/embed", "/predict", "/rerank", "/info"), shape, failing)

"""KServe's Open Inference Protocol, version 2, over REST: ``/v2``.

A request's tensors are texts, and an answer's tensors are what the kind gives. There is no binary tensor extension.
https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from serving.api.bodies import body_of, read_body
from serving.api.document import CHOOSING
from serving.api.failures import Failure
from serving.api.kserve_tensors import (
    BinaryTensorError,
    RequestInput,
    RequestOutput,
    ResponseOutput,
    TensorMetadata,
    check_outputs,
    chosen,
    inputs_of,
    items_of,
    outputs_of,
)
from serving.api.native import TaskOrAlias
from serving.api.predicting import Predictor, TaskAnswer, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, headers_of, responses
from serving.api.protocol import Protocol
from serving.api.resolve import Resolved
from serving.api.tasks import VersionName
from serving.errors import BadRequestError, StoreError
from serving.incoming import Free, Incoming
from serving.pipelines import PIPELINES, default_kind
from serving.service import Service

_PLATFORM = "pytorch_ken"


class Failed(BaseModel):
    """A failure in this protocol's form."""

    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class ModelReady(BaseModel):
    name: str
    ready: bool


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="digests, oldest first")
    platform: str
    inputs: list[TensorMetadata] = Field(description="tensors of the kind that the task answers by itself")
    outputs: list[TensorMetadata] = Field(description="tensors of the kind that the task answers by itself")


class InferRequest(Incoming):
    """Texts for a task, and the parameters of the task's kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "42",
                    "inputs": [
                        {
                            "name": "text",
                            "shape": [2],
                            "datatype": "BYTES",
                            "data": ["How far is it to Denver?", "Who wrote Hamlet?"],
                        }
                    ],
                    "outputs": [{"name": "label"}, {"name": "score"}],
                }
            ]
        },
    )

    id: str | None = Field(None, description="returned with the answer")
    parameters: Free = Field({}, description="the kind's parameters; `kind` asks for another kind than the task's own")
    inputs: list[RequestInput] = Field(
        min_length=1,
        description=(
            "one BYTES tensor of shape [n] or [n, 1], of any name; or one tensor for each field of the kind's inputs: "
            "text and text_pair, question and context, query [n] and texts [n, k]"
        ),
    )
    outputs: list[RequestOutput] | None = Field(
        None, description="the outputs that the answer shall have; by default all"
    )


class InferAnswer(BaseModel):
    model_config = ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "model_name": "trec",
                    "model_version": "0" * 64,
                    "id": "42",
                    "outputs": [
                        {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["NUM", "HUM"]},
                        {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.98, 0.97]},
                    ],
                }
            ]
        },
    )

    model_name: str
    model_version: str = Field(description="the digest of the delta that answered")
    id: str | None = None
    outputs: list[ResponseOutput]


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of the Open Inference Protocol."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    of_health, of_models, of_inference = failing(503), failing(401, 501), failing(*PREDICTION_FAILURES)

    @routes.get("")
    async def server(request: Request) -> ServerMetadata:
        """Name and version of the server."""
        return ServerMetadata(name="ken-serve", version=request.app.version, extensions=[])

    @routes.get("/health/live", responses=of_health)
    async def live() -> Live:
        """Whether this replica can answer at all."""
        service.check()
        return Live(live=True)

    @routes.get("/health/ready", responses=of_health)
    async def ready() -> Ready:
        """Whether the replica takes requests; 503 while it starts or stops."""
        service.admission.check_open()
        service.check()
        return Ready(ready=True)

    @routes.get("/models/{model}", responses=of_models, openapi_extra=CHOOSING)
    async def metadata(model: TaskOrAlias, request: Request) -> ModelMetadata:
        """A task's versions, and the tensors of its live version."""
        return await asyncio.to_thread(_metadata, service, predictor.resolve(request, model))

    @routes.get("/models/{model}/versions/{version}", responses=of_models, openapi_extra=CHOOSING)
    async def metadata_of_version(model: TaskOrAlias, version: VersionName, request: Request) -> ModelMetadata:
        """A task's versions, and the tensors of one of them."""
        return await asyncio.to_thread(_metadata, service, predictor.resolve(request, _named(model, version)))

    @routes.get("/models/{model}/ready", responses=of_models, openapi_extra=CHOOSING)
    async def model_ready(model: TaskOrAlias, request: Request) -> ModelReady:
        """Whether the replica takes requests for a task. The first of them loads the task's delta."""
        return _ready(service, predictor.resolve(request, model))

    @routes.get("/models/{model}/versions/{version}/ready", responses=of_models, openapi_extra=CHOOSING)
    async def version_ready(model: TaskOrAlias, version: VersionName, request: Request) -> ModelReady:
        """Whether the replica takes requests for a version of a task."""
        return _ready(service, predictor.resolve(request, _named(model, version)))

    @routes.post(
        "/models/{model}/infer",
        response_model=InferAnswer,
        responses=of_inference,
        openapi_extra=body_of(InferRequest),
    )
    async def infer(model: TaskOrAlias, request: Request) -> Response:
        """Answer a tensor of texts with a task's live version."""
        return await _infer(predictor, request, model)

    @routes.post(
        "/models/{model}/versions/{version}/infer",
        response_model=InferAnswer,
        responses=of_inference,
        openapi_extra=body_of(InferRequest),
    )
    async def infer_of_version(model: TaskOrAlias, version: VersionName, request: Request) -> Response:
        """Answer a tensor of texts with a version of a task."""
        return await _infer(predictor, request, _named(model, version))

    return routes


def failing(*statuses: int) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail with these statuses."""
    return responses(*statuses, schema=Failed, media_type="application/json")


def _named(model: str, version: str) -> str:
    return f"{model}@{version}"


def _ready(service: Service, found: Resolved) -> ModelReady:
    service.admission.check_open()
    service.check()
    return ModelReady(name=found.task, ready=True)


def _metadata(service: Service, found: Resolved) -> ModelMetadata:
    kind = _kind(service, found.digest)
    return ModelMetadata(
        name=found.task,
        versions=list(service.table.find(found.task).versions),
        platform=_PLATFORM,
        inputs=inputs_of(PIPELINES[kind]),
        outputs=[output.metadata for output in outputs_of(kind)],
    )


def _kind(service: Service, digest: str) -> str:
    """The kind that a delta answers by itself: read from the device, else from the store, else from the disk."""
    for loaded in service.engine.tiers.held():
        if loaded.digest == digest:
            return loaded.kind
    try:
        described = service.store.deltas.manifest(digest)
    except StoreError:
        if not service.cache.files.holds(digest):
            raise
        with service.cache.files.held(digest):
            found = service.cache.files.open(digest)[0].manifest
        return default_kind(found.kind, found.embedding is not None)
    if described is None:
        raise StoreError(f"the store does not hold delta {digest}")
    says = described.get("embedding") or described.get("pooling")  # deltas of earlier formats have `pooling`
    return default_kind(described["kind"], bool(says))


# Inference


async def _infer(predictor: Predictor, request: Request, named: str) -> Response:
    reading = _Reading(request)
    return _present(await predictor(request, reading, named), reading.body)


class _Reading:
    """Reads a request's body into a query, and keeps the body, on which the form of the answer depends."""

    body: InferRequest

    def __init__(self, request: Request) -> None:
        self._request = request

    async def __call__(self) -> TaskQuery:
        if "inference-header-content-length" in self._request.headers:
            raise BinaryTensorError("the header Inference-Header-Content-Length")
        self.body = await read_body(self._request, InferRequest)
        check_outputs(self.body.outputs or ())
        parameters = dict(self.body.parameters)
        if parameters.pop("binary_data_output", False):
            raise BinaryTensorError(
                "the parameter binary_data_output, which tritonclient sets if a request names no outputs"
            )
        kind = parameters.pop("kind", None)
        if kind is not None and not isinstance(kind, str):
            raise BadRequestError(f"parameters.kind is {kind!r}; expected the name of a kind")
        return TaskQuery(items_of(self.body.inputs), parameters, kind)


def _present(answered: TaskAnswer, asked: InferRequest) -> Response:
    prediction = answered.prediction
    content = {
        "model_name": answered.task,
        "model_version": prediction.digest,
        "outputs": [output.tensor(prediction.outputs) for output in chosen(asked.outputs, prediction.kind)],
    }
    if asked.id is not None:
        content["id"] = asked.id
    return Response(orjson.dumps(content), headers=answered.headers, media_type="application/json")


def failed(failure: Failure) -> JSONResponse:
    """A failure in this protocol's form."""
    return JSONResponse({"error": failure.detail}, failure.status, headers_of(failure))


PROTOCOL = Protocol(router, ("/v2",), failed, failing)

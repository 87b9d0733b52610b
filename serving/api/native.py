"""The project's own protocol: ``/v1/tasks``."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ken_core.tokenization import Input
from serving.api.admin import admin_only
from serving.api.bodies import read_body
from serving.api.middleware import TooLongBodyError
from serving.api.problems import RESPONSES
from serving.api.resolve import resolve
from serving.errors import InvalidInputError, ServingError, StoreError, UnknownTaskError
from serving.service import Answer, Service
from serving.store import Task


class TextPair(BaseModel):
    """Two texts judged together."""

    model_config = ConfigDict(extra="forbid")

    text: str
    text_pair: str


class PredictRequest(BaseModel):
    """Inputs for a task, and its kind's parameters."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": ["How far is it to Denver?"], "parameters": {"top_k": 1}}]},
    )

    inputs: str | TextPair | list[str | TextPair] = Field(description="a text, a pair of texts, or a list of them")
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("inputs")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("expected at least one input")
        return value

    def texts(self) -> list[Input]:
        listed = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return [item if isinstance(item, str) else (item.text, item.text_pair) for item in listed]


class PredictAnswer(BaseModel):
    """One output an input, in order."""

    task: str
    digest: str = Field(description="the delta that answered")
    outputs: list[Any]
    truncated: list[int] = Field(description="positions of inputs that were cut to the model's length")


class TaskInfo(BaseModel):
    name: str
    revision: int = Field(description="the store's revision at the task's last change")
    aliases: dict[str, str] = Field(description="alias to digest")
    versions: list[str] = Field(description="digests, oldest first")


class Change(BaseModel):
    """Which alias to change, and to which digest."""

    model_config = ConfigDict(extra="forbid")

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    alias: str = "live"


class AliasOnly(BaseModel):
    model_config = ConfigDict(extra="forbid")

    alias: str = "live"


class Changed(BaseModel):
    task: str
    revision: int = Field(description="the store's revision after the change")


TaskName = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,255}$", description="a task, or task@alias")]


def router(service: Service) -> APIRouter:
    """Routes of the native protocol."""
    routes = APIRouter(prefix="/v1", tags=["tasks"], responses=RESPONSES)  # type: ignore[arg-type]

    admin = admin_only(service)

    @routes.post(
        "/tasks/{task}/predict",
        response_model=PredictAnswer,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _inlined(PredictRequest.model_json_schema())}},
            }
        },
    )
    async def predict(task: TaskName, request: Request) -> Response:
        """Answer one or many inputs with a task's live version."""
        started = time.perf_counter()
        label, code = "unknown", 500
        try:
            service.admit()
            resolved = resolve(service, request, task)
            label = service.metrics.task_label(resolved.task)
            body = await read_body(request, PredictRequest)
            answer = await _answer(service, resolved.digest, body)
            code = 200
            for stage, seconds in answer.timing.stages():
                service.metrics.request_seconds.labels(label, stage).observe(seconds)
            return _present(resolved.task, answer)
        except ServingError as error:
            code = error.status
            raise
        except asyncio.CancelledError:
            code = 499
            raise
        except TooLongBodyError:
            code = 413
            raise
        finally:
            service.metrics.requests.labels(label, str(code)).inc()
            service.metrics.request_seconds.labels(label, "total").observe(time.perf_counter() - started)

    @routes.get("/tasks")
    async def tasks() -> list[TaskInfo]:
        """All tasks this replica knows."""
        return [_info(task) for _, task in sorted(service.table.current.tasks.items())]

    @routes.get("/tasks/{task}")
    async def task(task: TaskName) -> TaskInfo:
        """One task's aliases and versions."""
        return _info(service.table.find(task))

    @routes.get("/tasks/{task}/history")
    async def history(task: TaskName) -> list[dict[str, Any]]:
        """Who changed what, newest first."""
        return await asyncio.to_thread(service.store.history, task)

    @routes.post("/tasks/{task}/versions", dependencies=[Depends(admin)])
    async def promote_version(task: TaskName, change: Change) -> Changed:
        """Point an alias at a digest that is a version of the task already."""
        return await _changed(service, task, service.store.promote, task, change.digest, change.alias)

    @routes.post("/tasks/{task}/promote", dependencies=[Depends(admin)])
    async def promote(task: TaskName, change: Change) -> Changed:
        """Point an alias at one of the task's versions."""
        return await _changed(service, task, service.store.promote, task, change.digest, change.alias)

    @routes.post("/tasks/{task}/rollback", dependencies=[Depends(admin)])
    async def rollback(task: TaskName, change: AliasOnly) -> Changed:
        """Point an alias at what it pointed at before."""
        return await _changed(service, task, service.store.rollback, task, change.alias)

    @routes.delete("/tasks/{task}", dependencies=[Depends(admin)])
    async def delete(task: TaskName) -> Changed:
        """Forget a task."""
        return await _changed(service, task, partial(service.store.delete, force=True), task)

    return routes


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that fits anywhere in a document: its own definitions in place of references to them."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            name = part.get("$ref", "").removeprefix("#/$defs/")
            return resolve(definitions[name]) if name else {k: resolve(v) for k, v in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    return {k: resolve(v) for k, v in schema.items()}


async def _answer(service: Service, digest: str, body: PredictRequest) -> Answer:
    texts = body.texts()
    most = service.settings.max_inputs
    if len(texts) > most:
        raise InvalidInputError(f"inputs: found {len(texts)}, at most {most} are allowed in one request")
    return await service.predict(digest, texts, body.parameters, service.settings.request_timeout_seconds)


def _present(task: str, answer: Answer) -> Response:
    content = {"task": task, "digest": answer.digest, "outputs": answer.outputs, "truncated": answer.truncated}
    headers = {
        "X-Ken-Delta": answer.digest,
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in answer.timing.stages()),
    }
    return Response(orjson.dumps(content), headers=headers, media_type="application/json")


def _info(task: Task) -> TaskInfo:
    return TaskInfo(name=task.name, revision=task.revision, aliases=task.aliases, versions=list(task.versions))


async def _changed(service: Service, task: str, change: Any, *arguments: str) -> Changed:
    if "@" in task:
        raise UnknownTaskError(f"there is no task {task!r}; changes name a task without an alias")
    try:
        return Changed(task=task, revision=await asyncio.to_thread(change, *arguments))
    except StoreError as error:
        raise StoreError(f"nothing was changed: {error}") from error

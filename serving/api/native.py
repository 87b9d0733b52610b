"""The project's own protocol: ``/v1/tasks``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from serving.api.admin import admin_only
from serving.api.bodies import body_of, read_body
from serving.api.predicting import Answered, Predictor, Question
from serving.api.problems import responses
from serving.api.protocol import Protocol
from serving.errors import StoreError, UnknownTaskError
from serving.service import Service
from serving.store import Task


class PredictRequest(BaseModel):
    """Inputs for a task, and its kind's parameters."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": ["How far is it to Denver?"], "parameters": {"top_k": 1}}]},
    )

    inputs: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="one input or a list of them: texts, or objects of the fields the kind asks for"
    )
    parameters: dict[str, Any] = Field(default_factory=dict, description="of the kind")
    kind: str | None = Field(None, description="what to ask of the task; by default what it answers by itself")

    def listed(self) -> list[str | dict[str, Any]]:
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


class PredictAnswer(BaseModel):
    """One output an input, in order."""

    task: str
    digest: str = Field(description="the delta that answered")
    kind: str = Field(description="the kind of question that was answered")
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


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of the native protocol."""
    routes = APIRouter(prefix="/v1", tags=["tasks"], responses=responses(400, 404, 413, 422, 429, 501, 503, 504))

    admin = admin_only(service)

    @routes.post("/tasks/{task}/predict", response_model=PredictAnswer, openapi_extra=body_of(PredictRequest))
    async def predict(task: TaskName, request: Request) -> Response:
        """Answer one or many inputs with a task's live version."""

        async def read() -> Question:
            body = await read_body(request, PredictRequest)
            return Question(body.listed(), body.parameters, body.kind)

        return _present(await predictor(request, read, task))

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
        return await _changed(service, task, service.store.delete, task)

    return routes


def _present(answered: Answered) -> Response:
    answer = answered.answer
    content = {
        "task": answered.task,
        "digest": answer.digest,
        "kind": answer.kind,
        "outputs": answer.outputs,
        "truncated": answer.truncated,
    }
    return Response(orjson.dumps(content), headers=answered.headers, media_type="application/json")


def _info(task: Task) -> TaskInfo:
    return TaskInfo(name=task.name, revision=task.revision, aliases=task.aliases, versions=list(task.versions))


async def _changed(service: Service, task: str, change: Any, *arguments: str) -> Changed:
    if "@" in task:
        raise UnknownTaskError(f"there is no task {task!r}; changes name a task without an alias")
    try:
        return Changed(task=task, revision=await asyncio.to_thread(change, *arguments))
    except StoreError as error:
        raise StoreError(f"nothing was changed: {error}") from error


PROTOCOL = Protocol(router, ("/v1",))

"""The project's own protocol, for a question to many tasks: ``POST /v1/predict``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator
from pydantic_core import PydanticCustomError
from starlette.types import Scope

from serving.api.bodies import body_of, read_body
from serving.api.failures import failure_of
from serving.api.fan_out import FanOut, ManyTasksQuery, TaskOutcome
from serving.api.native import PredictAnswer, answer_of
from serving.api.predicting import Predictor, TaskQuery, server_timing
from serving.api.problems import Problem, responses
from serving.api.protocol import Protocol
from serving.errors import ServingError
from serving.incoming import Free, Incoming
from serving.replica.inference import Prediction
from serving.service import Service

TaskOrPattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.*?\[\]!@-]{1,256}$")]


class ManyTasksRequest(Incoming):
    """Tasks, inputs for each of them, and parameters for each of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"tasks": ["trec", "spam@canary"], "inputs": "How far is it to Denver?", "parameters": {"top_k": 1}},
                {"tasks": "*", "inputs": ["How far is it to Denver?"]},
            ]
        },
    )

    tasks: TaskOrPattern | Annotated[list[TaskOrPattern], Field(min_length=1)] = Field(
        description="a task, task@alias, or a pattern of tasks' names such as * or tox*; or a list of them"
    )
    inputs: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="one input or a list of them, for every task: texts, or objects of the fields the kinds ask for"
    )
    parameters: Free = Field({}, description="for every task; a task whose kind does not take them fails")

    @field_validator("tasks", mode="before")
    @classmethod
    def _are_names(cls, plain: Any) -> Any:
        if any(isinstance(one, Mapping) for one in (plain if isinstance(plain, list) else [plain])):
            raise PydanticCustomError(
                "merge",
                "expected names and patterns; a merge of tasks is asked by itself, as the model of "
                "POST /v1/tasks/{task}/predict",
            )
        return plain

    def query(self) -> ManyTasksQuery:
        tasks = self.tasks if isinstance(self.tasks, list) else [self.tasks]
        inputs = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return ManyTasksQuery(tasks, TaskQuery(inputs, self.parameters))


class TaskProblem(Problem):
    """Why a task did not answer: what the task alone would have been answered with."""

    retry_after: int | None = Field(None, description="seconds to wait; null where trying again later is of no use")


class TaskFailure(BaseModel):
    """A task that did not answer."""

    task: str = Field(description="as it was asked for")
    error: TaskProblem


class ManyTasksAnswer(BaseModel):
    """An answer or a failure a task, in the order asked; the tasks of a pattern by name."""

    results: list[PredictAnswer | TaskFailure] = Field(description="each names its task as it was asked for")


def router(service: Service, predictor: Predictor) -> APIRouter:
    """The route of the native protocol that asks many tasks."""
    routes = APIRouter(prefix="/v1", tags=["predict"], responses=responses(401, 429, 504))
    fan_out = FanOut(service.admission, predictor)

    @routes.post("/predict", response_model=ManyTasksAnswer, openapi_extra=body_of(ManyTasksRequest))
    async def predict_many(request: Request) -> Response:
        """Answer one or many inputs with each of many tasks. A task that fails does so alone."""

        async def read() -> ManyTasksQuery:
            return (await read_body(request, ManyTasksRequest)).query()

        return _present(request.scope, await fan_out(request, read))

    return routes


def _present(scope: Scope, outcomes: Sequence[TaskOutcome]) -> Response:
    content = {"results": [_plain(scope, outcome) for outcome in outcomes]}
    answers = [outcome.result for outcome in outcomes if isinstance(outcome.result, Prediction)]
    timing = server_timing(_longest(answers), any(answer.timing.mixed for answer in answers))
    return Response(orjson.dumps(content), headers=timing, media_type="application/json")


def _plain(scope: Scope, outcome: TaskOutcome) -> dict[str, Any]:
    if isinstance(outcome.result, ServingError):
        return TaskFailure(task=outcome.task, error=_problem(scope, outcome.result)).model_dump()
    return answer_of(outcome.task, outcome.result)


def _problem(scope: Scope, error: ServingError) -> TaskProblem:
    failure = failure_of(scope, error)
    return TaskProblem(
        title=failure.title,
        status=failure.status,
        detail=failure.detail,
        request_id=failure.request_id,
        retry_after=None if failure.retry_after is None else math.ceil(failure.retry_after),
    )


def _longest(answers: Iterable[Prediction]) -> Iterable[tuple[str, float]]:
    """Of each stage, the longest time that a task spent in it, in seconds."""
    longest: dict[str, float] = {}
    for answer in answers:
        for stage, seconds in answer.timing.stages():
            longest[stage] = max(seconds, longest.get(stage, 0.0))
    return longest.items()


PROTOCOL = Protocol(router)

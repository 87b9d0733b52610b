"""The server's own protocol: ``POST /v1/tasks/{task}/predict``."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from serving.api.bodies import body_of, read_body
from serving.api.merging import MergedModel
from serving.api.predicting import Predictor, TaskAnswer, TaskQuery
from serving.api.problems import PREDICTION_FAILURES, responses
from serving.api.protocol import Protocol
from serving.incoming import Free, Incoming
from serving.replica.inference import Prediction
from serving.service import Service


class PredictRequest(Incoming):
    """Inputs for a task, and the parameters of its kind."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["How far is it to Denver?"], "parameters": {"top_k": 1}},
                {"inputs": "How far is it to Denver?", "model": {"merge": {"trec": 0.7, "trec@canary": 0.3}}},
            ]
        },
    )

    inputs: str | dict[str, Any] | list[str | dict[str, Any]] = Field(
        description="one input or a list of inputs: texts, or objects with the fields of the kind"
    )
    parameters: Free = Field({}, description="the kind's parameters")
    kind: str | None = Field(None, description="the kind to answer; by default the one that the task answers by itself")
    model: MergedModel | None = Field(
        None,
        description="tasks to merge for this request, with the head of the path's task; by default that task alone",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _is_no_name(cls, plain: Any) -> Any:
        if isinstance(plain, str):
            raise PydanticCustomError("merge", "the path names the task; expected an object that says what to merge")
        return plain

    def listed(self) -> list[str | dict[str, Any]]:
        return self.inputs if isinstance(self.inputs, list) else [self.inputs]


class PredictAnswer(BaseModel):
    """One output for each input, in order."""

    task: str
    digest: str = Field(description="sha256 of the delta that answered, or of what the merge that did is made of")
    kind: str = Field(description="the kind that was answered")
    outputs: list[Any]
    truncated: list[int] = Field(description="positions of inputs that were cut to the model's length")
    model: MergedModel | None = Field(
        None, description="the merge that answered, with its versions pinned; absent where a version of the task did"
    )


TaskOrAlias = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,255}$", description="a task, or task@alias")]


def router(service: Service, predictor: Predictor) -> APIRouter:
    """Routes of the native protocol."""
    routes = APIRouter(prefix="/v1/tasks", tags=["predict"], responses=responses(*PREDICTION_FAILURES))

    @routes.post("/{task}/predict", response_model=PredictAnswer, openapi_extra=body_of(PredictRequest))
    async def predict(task: TaskOrAlias, request: Request) -> Response:
        """Answer one or many inputs with a task."""

        async def read() -> TaskQuery:
            body = await read_body(request, PredictRequest)
            return TaskQuery(body.listed(), body.parameters, body.kind, body.model)

        return _present(await predictor(request, read, task))

    return routes


def answer_of(task: str, prediction: Prediction) -> dict[str, Any]:
    """A `PredictAnswer` as plain JSON."""
    return {
        "task": task,
        "digest": prediction.digest,
        "kind": prediction.kind,
        "outputs": prediction.outputs,
        "truncated": prediction.truncated,
    }


def _present(answered: TaskAnswer) -> Response:
    merged = {} if answered.merge is None else {"model": answered.merge.plain()}
    content = {**answer_of(answered.task, answered.prediction), **merged}
    return Response(orjson.dumps(content), headers=answered.headers, media_type="application/json")


PROTOCOL = Protocol(router)

"""Requests whose body is a protocol's own form of a query to a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Path, Request
from pydantic import BeforeValidator, Field, InstanceOf, WithJsonSchema
from pydantic_core import PydanticCustomError

from serving.api.bodies import read_body
from serving.api.predicting import Predictor, TaskAnswer, TaskQuery
from serving.incoming import Incoming
from serving.pipelines.token_ids import TokenIds

ModelName = Annotated[str, Path(description="a task, or task@alias")]


class QueryBody(Incoming, ABC):
    """Base of the bodies that query a task, each in the form of its protocol."""

    @abstractmethod
    def task_query(self) -> TaskQuery:
        """The query in the form that all protocols share. Raises `InvalidInputError`: no task can answer it."""


A = TypeVar("A", bound=QueryBody)


async def ask(predictor: Predictor, request: Request, form: type[A], task: str | None = None) -> tuple[A, TaskAnswer]:
    """Answer a request whose body has a given form. Returns the body too, on which the form of the answer may depend.

    Args:
        task: the task, where the path names it.

    Raises:
        ServingError: see `Predictor` and `read_body`.
    """
    body: A

    async def read() -> TaskQuery:
        nonlocal body
        body = await read_body(request, form)
        return body.task_query()

    answered = await predictor(request, read, task)
    return body, answered


def _texts(plain: Any) -> list[Any]:
    if isinstance(plain, str):
        return [plain]
    if not isinstance(plain, list):
        raise PydanticCustomError("texts", "expected a text or a list of texts")
    if any(isinstance(item, int | list) for item in plain):
        raise PydanticCustomError(
            "texts",
            "token ids are not taken, since ids of another tokenizer would give wrong vectors; send texts (in "
            "LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False)), or set KEN_ACCEPT_TOKEN_IDS on the "
            "server if the ids come from the task's own tokenizer",
        )
    return plain


def _texts_or_ids(plain: Any) -> list[Any]:
    if isinstance(plain, list) and plain and all(type(item) is int for item in plain):
        plain = [plain]
    if not (isinstance(plain, list) and any(isinstance(item, list) for item in plain)):
        return _texts(plain)
    if not all(isinstance(ids, list) and all(type(token) is int for token in ids) for ids in plain):
        raise PydanticCustomError("texts", "expected only texts, or only lists of token ids")
    return [TokenIds(tuple(ids)) for ids in plain]


def _one_or_many(form: dict[str, Any]) -> list[dict[str, Any]]:
    return [form, {"type": "array", "items": form, "minItems": 1}]


_text = {"type": "string"}
_ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

Texts = Annotated[
    Sequence[str | InstanceOf[TokenIds]],
    BeforeValidator(_texts),
    Field(min_length=1),
    WithJsonSchema({"anyOf": _one_or_many(_text)}),
]
"""One text or a list of texts. A list after validation."""

TextsOrTokenIds = Annotated[
    Sequence[str | InstanceOf[TokenIds]],
    BeforeValidator(_texts_or_ids),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [*_one_or_many(_text), *_one_or_many(_ids)]}),
]
"""As `Texts`, or one list of token ids of the task's own tokenizer, or a list of such lists."""

"""A request whose body is a question in the words of a protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from serving.api.bodies import read_body
from serving.api.predicting import Answered, Predictor, Question
from serving.incoming import Incoming


class Asked(Incoming, ABC):
    """A body that asks a task something. A protocol's bodies say what they ask in the words of all protocols."""

    @abstractmethod
    def question(self) -> Question:
        """Raises `InvalidInputError`: it asks for what no task does."""


A = TypeVar("A", bound=Asked)


async def ask(predictor: Predictor, request: Request, form: type[A], task: str | None = None) -> tuple[A, Answered]:
    """Answer a request whose body has a form; the body comes with the answer, which may depend on its wording.

    Args:
        task: where the path names it.

    Raises:
        ServingError: see `Predictor` and `read_body`.
    """
    body: A

    async def read() -> Question:
        nonlocal body
        body = await read_body(request, form)
        return body.question()

    answered = await predictor(request, read, task)
    return body, answered


def _listed(plain: Any) -> list[Any]:
    if isinstance(plain, str):
        return [plain]
    if not isinstance(plain, list):
        raise PydanticCustomError("texts", "expected a text or a list of texts")
    if any(isinstance(item, int | list) for item in plain):
        raise PydanticCustomError("texts", "token ids are not taken; send texts")
    return plain


_text = {"type": "string"}

Texts = Annotated[
    list[str],
    BeforeValidator(_listed),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [_text, {"type": "array", "items": _text, "minItems": 1}]}),
]
"""One text or a list of them; a list once checked."""

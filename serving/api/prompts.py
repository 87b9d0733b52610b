"""Prompts as OpenAI's completions take them: texts, or token ids of the task's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, InstanceOf
from pydantic_core import PydanticCustomError

from serving.pipelines.token_ids import TokenIds

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


MOST_PROMPTS = 16_384
"""Of one request, before the server's own limit is asked: lists of ids take 3 µs each to read."""


def prompts_of(plain: Any) -> list[str | TokenIds]:
    """The prompts in what a client sent; each error is one of pydantic's."""
    if isinstance(plain, str):
        return [plain]
    if isinstance(plain, list) and len(plain) > MOST_PROMPTS and type(plain[0]) is not int:
        raise PydanticCustomError(
            "too_many",
            "found {prompts} prompts; at most {most} are taken",
            {"prompts": len(plain), "most": MOST_PROMPTS},
        )
    if isinstance(plain, list) and plain:
        if all(isinstance(item, str) for item in plain):
            return plain
        lists = plain if isinstance(plain[0], list) else [plain]
        if all(are_ids(item) for item in lists):
            return [TokenIds(tuple(ids)) for ids in lists]
    raise PydanticCustomError(
        "prompt", "expected a text, a list of texts, a list of token ids, or a list of such lists, none of them empty"
    )


def are_ids(plain: Any) -> bool:
    """Whether what a client sent is a list of token ids, of any tokenizer."""
    return isinstance(plain, list) and bool(plain) and all(type(item) is int for item in plain)


Prompts = Annotated[
    Sequence[str | InstanceOf[TokenIds]],
    BeforeValidator(prompts_of, json_schema_input_type=str | list[str] | Ids | list[Ids]),
]
"""A list after validation."""

"""Reading a JSON body into a model, with the right refusal for each way it can be wrong."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel

from serving.errors import BadRequestError
from serving.pipelines.base import check

M = TypeVar("M", bound=BaseModel)


async def read_body(request: Request, model: type[M]) -> M:
    """Parse and check a body.

    Raises:
        BadRequestError: empty, not UTF-8, or no JSON.
        InvalidInputError: JSON of another form; the place and the reason are named.
    """
    return check(model, await read_json(request))


async def read_json(request: Request) -> Any:
    """Parse a body; raises `BadRequestError`: empty, not UTF-8, or no JSON."""
    raw = await request.body()
    if not raw.strip():
        raise BadRequestError('the body is empty; expected JSON such as {"inputs": "some text"}')
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON in UTF-8: {error}") from None


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI document says of a route that reads its body with `read_body`."""
    content = {"application/json": {"schema": inlined(model.model_json_schema())}}
    return {"requestBody": {"required": True, "content": content}}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that fits anywhere in a document: its own definitions in place of references to them."""
    definitions = schema.pop("$defs", {})

    def resolve(part: Any) -> Any:
        if isinstance(part, dict):
            name = part.get("$ref", "").removeprefix("#/$defs/")
            return resolve(definitions[name]) if name else {k: resolve(v) for k, v in part.items()}
        return [resolve(item) for item in part] if isinstance(part, list) else part

    return {k: resolve(v) for k, v in schema.items()}

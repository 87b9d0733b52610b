"""Reading a JSON body into a model, with the right refusal for each way it can be wrong."""

from __future__ import annotations

from typing import TypeVar

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
    raw = await request.body()
    if not raw.strip():
        raise BadRequestError('the body is empty; expected JSON such as {"inputs": "some text"}')
    try:
        plain = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON in UTF-8: {error}") from None
    return check(model, plain)

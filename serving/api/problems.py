"""Failures as RFC 9457 problem JSON, and as the OpenAPI document describes them."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from serving.api.bodies import inlined
from serving.api.failures import Failure

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """A failure, as RFC 9457 has it."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = Field(None, description="the X-Request-Id of the request")


def problem(failure: Failure) -> JSONResponse:
    """A failure as problem JSON."""
    body = Problem(title=failure.title, status=failure.status, detail=failure.detail, request_id=failure.request_id)
    return JSONResponse(body.model_dump(), failure.status, headers_of(failure), media_type=MEDIA_TYPE)


def headers_of(failure: Failure) -> dict[str, str]:
    """The headers of a failure's answer in every protocol, among them ``Retry-After`` in whole seconds."""
    made = dict(failure.headers)
    if failure.retry_after is not None:
        made["Retry-After"] = str(math.ceil(failure.retry_after))
    return made


_MEANINGS = {
    400: "The body is not JSON in UTF-8, or a header is malformed",
    401: "The request needs a key, or the server does not know the key that it has",
    403: "The key lacks the scope that this needs, or no trusted key signed the delta",
    404: "No such task, alias, version or key",
    405: "The path has other methods; see Allow",
    408: "The body did not arrive in time",
    409: "The present state does not allow it",
    413: "The body is too large, or has too many tokens",
    415: "The server does not read the body's encoding or character set; see Accept-Encoding",
    422: "The request has another form than expected",
    429: "Too many requests wait already; see Retry-After",
    500: "The server failed; its log names the request",
    501: "The server has no answers for the kind of this task",
    503: "The server is starting or stopping, or the store does not answer; see Retry-After",
    504: "There was no answer in time",
    507: "The store has no room for the delta",
}


PREDICTION_FAILURES = (401, 404, 429, 501, 504)
"""Statuses with which a prediction may fail, in addition to those of every operation with a body and a key."""


def exemplified(example: Any) -> dict[int | str, Any]:
    """The ``responses`` of a route whose answers have no schema that could hold an example."""
    return {200: {"content": {"application/json": {"example": example}}}}


def responses(*statuses: int, schema: type[BaseModel] = Problem, media_type: str = MEDIA_TYPE) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail with these statuses. `document` adds those that many routes share."""
    content = {media_type: {"schema": inlined(schema.model_json_schema())}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}

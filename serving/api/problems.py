"""Failures as RFC 9457 problem JSON, and what the OpenAPI document says of them."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from serving.api.bodies import inlined
from serving.api.failures import Failure

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error, RFC 9457."""

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
    """A failure's headers, ``Retry-After`` in whole seconds among them: the same in every protocol."""
    made = dict(failure.headers)
    if failure.retry_after is not None:
        made["Retry-After"] = str(math.ceil(failure.retry_after))
    return made


_MEANINGS = {
    400: "The body is no JSON, or not UTF-8, or a header is malformed",
    401: "A key is needed, or the one given is not known",
    403: "The key's scopes do not cover this, or no trusted key signed the delta",
    404: "No such task, alias, version or key",
    405: "The path is there, for other methods; see Allow",
    408: "The body did not arrive in time",
    409: "The present state does not allow it",
    413: "The body is too large, or has too many tokens",
    415: "The body is in an encoding or a character set that is not taken; see Accept-Encoding",
    422: "The request is of another form than expected",
    429: "Too much waits already; see Retry-After",
    500: "The server failed; its log names the request",
    501: "The task is of a kind this server does not answer for",
    503: "Starting, stopping, or the store does not answer; see Retry-After",
    504: "The deadline passed",
}


PREDICTION_FAILURES = (401, 404, 429, 501, 504)
"""Ways in which a prediction may fail, beside those of everything that has a body and needs a key."""


def exemplified(example: Any) -> dict[int | str, Any]:
    """The ``responses`` of a route whose answers have no form of their own to show an example of."""
    return {200: {"content": {"application/json": {"example": example}}}}


def responses(*statuses: int, schema: type[BaseModel] = Problem, media_type: str = MEDIA_TYPE) -> dict[int | str, Any]:
    """The ``responses`` of a route that may fail in these ways; `document` adds those that many routes share."""
    content = {media_type: {"schema": inlined(schema.model_json_schema())}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}

"""Errors as RFC 9457 problem JSON, each with the request's id."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from ken_core import KenError
from serving.errors import ServingError

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str | None = Field(None, description="the X-Request-Id of the request")


def problem(
    request_id: str | None, status: int, title: str, detail: str, retry_after: float | None = None
) -> JSONResponse:
    """An error as an answer."""
    body = Problem(title=title, status=status, detail=detail, request_id=request_id)
    headers = {"Retry-After": str(math.ceil(retry_after))} if retry_after is not None else None
    return JSONResponse(body.model_dump(), status, headers, media_type=MEDIA_TYPE)


def from_error(request_id: str | None, error: ServingError) -> JSONResponse:
    return problem(request_id, error.status, error.title, str(error), error.retry_after)


def install(app: FastAPI) -> None:
    """Answer every exception with a problem; unexpected ones tell the client nothing but where to look."""

    @app.exception_handler(ServingError)
    async def on_serving_error(request: Request, error: ServingError) -> JSONResponse:
        return from_error(_id(request), error)

    @app.exception_handler(KenError)
    async def on_ken_error(request: Request, error: KenError) -> JSONResponse:
        _log.error("request %s failed: %s", _id(request), error)
        return problem(_id(request), 500, "Internal error", str(error))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        title = HTTPStatus(error.status_code).phrase
        answer = problem(_id(request), error.status_code, title, f"{title}: {request.method} {request.url.path}")
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return problem(_id(request), 422, "Invalid input", f"{where}: {first['msg']}")

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> JSONResponse:
        _log.exception("request %s failed", _id(request), exc_info=error)
        answer = problem(_id(request), 500, "Internal error", "the server failed; its log names this request")
        answer.headers["X-Request-Id"] = _id(request) or ""
        return answer


def _id(request: Request) -> str | None:
    return request.headers.get("x-request-id")


RESPONSES = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
    for status, text in {
        400: "The body is no JSON, or not UTF-8",
        404: "No such task",
        413: "The body is too large",
        422: "The body is JSON of another form",
        429: "Too many inputs wait already; see Retry-After",
        501: "The task is of a kind this server does not answer for",
        503: "Starting, stopping, or the delta cannot be had at present; see Retry-After",
        504: "The deadline passed",
    }.items()
}

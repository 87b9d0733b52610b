"""From an exception to the answer that a client gets, in the form of the protocol that the client speaks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from ken_core import KenError
from serving.errors import InternalError, InvalidInputError, ServingError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a request failed, in the form that all protocols share.

    Attributes:
        at: the part of the request that is wrong, see `ServingError`.
        code: OpenAI's name for the failure, see `ServingError`.
        retry_after: seconds until trying again may help; None where it does not help.
        headers: in addition to those of every failure.
    """

    status: int
    title: str
    detail: str
    request_id: str | None
    at: str | None = None
    code: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Shape = Callable[[Failure], Response]


def failure_of(scope: Scope, error: ServingError) -> Failure:
    return Failure(
        error.status,
        error.title,
        str(error),
        request_id(scope),
        error.at,
        error.code,
        error.retry_after,
        error.headers,
    )


def install(app: FastAPI, shape_of: Callable[[str], Shape]) -> None:
    """Answer every exception. Of an unexpected one the client learns nothing, except that the log names its request.

    Args:
        shape_of: gives the form of failures under a path.
    """

    def answer(request: Request, failure: Failure) -> Response:
        return shape_of(request.url.path)(failure)

    @app.exception_handler(ServingError)
    async def on_serving_error(request: Request, error: ServingError) -> Response:
        return answer(request, failure_of(request.scope, logged(request.scope, error)))

    @app.exception_handler(KenError)
    async def on_ken_error(request: Request, error: KenError) -> Response:
        return answer(request, failure_of(request.scope, logged(request.scope, error)))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        title = HTTPStatus(error.status_code).phrase
        detail = f"{title}: {request.method} {request.url.path}"
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = ", ".join(allowed(app, request.scope))
        return answer(request, Failure(error.status_code, title, detail, request_id(request.scope), headers=headers))

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(request, failure_of(request.scope, InvalidInputError(first["msg"], at=where)))

    @app.exception_handler(Exception)
    async def on_exception(request: Request, error: Exception) -> Response:
        made = answer(request, failure_of(request.scope, logged(request.scope, error)))
        made.headers["X-Request-Id"] = request_id(request.scope) or ""
        return made


def logged(scope: Scope, error: Exception) -> ServingError:
    """What a client is told of an exception. The log has every failure that is the server's fault."""
    found = request_id(scope)
    if not isinstance(error, KenError):
        _log.exception("request %s failed", found, exc_info=error, extra={"request_id": found})
        return InternalError("the server failed; its log names this request")
    if isinstance(error, InternalError) or not isinstance(error, ServingError):
        _log.error("request %s failed: %s", found, error)
    return error if isinstance(error, ServingError) else InternalError(str(error))


def allowed(app: FastAPI, scope: Scope) -> list[str]:
    """The methods that a path has. Starlette names those of one route, but a path may have a route for each method.

    A path with GET has HEAD too, see `middleware.HeadAsGet`.
    """

    def has(method: str) -> bool:
        return any(route.matches({**scope, "method": method})[0] is Match.FULL for route in app.routes)

    found = [method for method in ("GET", "POST", "PUT", "DELETE") if has(method)]
    return ["GET", "HEAD", *found[1:]] if "GET" in found else found


def request_id(scope: Scope) -> str | None:
    """The id that `middleware.RequestIds` gave a request; None outside of that middleware."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), None)

"""Why a call failed: the server refused it, no answer came, or the answer is not one of a ken-serve."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from ken_core.errors import KenError

_SHOWN = 200
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


class ClientError(KenError):
    """Base class of the client's errors."""


class ApiError(ClientError):
    """The server answered with an error status.

    Attributes:
        status: the HTTP status.
        title: the kind of failure in a few words.
        detail: what was found, what was expected, what to do.
        request_id: names the request in the server's log; None if something in front of the server answered.
        retry_after: seconds after which to try again; None if trying again does not help.
    """

    def __init__(
        self, status: int, title: str, detail: str, request_id: str | None = None, retry_after: float | None = None
    ) -> None:
        named = f", request {request_id}" if request_id else ""
        super().__init__(f"{detail} ({title}, HTTP {status}{named})")
        self.status = status
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after


class UnreachableError(ClientError):
    """No answer came.

    Attributes:
        sent: whether the call was sent, so that the server may have acted on it.
    """

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ReplyError(ClientError):
    """An answer came whose form is not a ken-serve's."""


def api_error(response: httpx.Response, now: float | None = None) -> ApiError:
    """The error for an answer that is not a success. The server's own errors are RFC 9457 problem JSON.

    Args:
        now: the time in Unix seconds; by default the current time.
    """
    problem = _problem(response)
    title = str(problem.get("title") or response.reason_phrase or "unknown status")
    request_id = problem.get("request_id") or response.headers.get("x-request-id")
    retry_after = seconds_of(response.headers.get("retry-after"), time.time() if now is None else now)
    return ApiError(response.status_code, title, _detail(response, problem), request_id, retry_after)


def stream_error(response: httpx.Response, problem: object) -> ApiError:
    """The error for a failure in the middle of a stream, whose problem JSON is an event."""
    found = problem if isinstance(problem, dict) else {}
    status = found.get("status")
    return ApiError(
        status if isinstance(status, int) else 500,
        str(found.get("title") or "unknown failure"),
        _detail(response, found) if "detail" in found else f"{response.request.url} gave no reason",
        found.get("request_id") or response.headers.get("x-request-id"),
    )


def unreachable(error: httpx.RequestError, where: str, seconds: float) -> UnreachableError:
    """The error for a call that httpx got no answer to.

    Args:
        where: the server's URL.
        seconds: how long the client has tried the call.
    """
    sent = not isinstance(error, _NEVER_SENT)
    if isinstance(error, httpx.TimeoutException):
        return UnreachableError(f"{where} did not answer within {seconds:.3g} s", sent)
    reason = str(error) or type(error).__name__
    advice = "" if sent else "; check that the server is running and that the URL is right"
    return UnreachableError(f"{where} does not answer: {reason}{advice}", sent)


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """The header ``Retry-After`` (RFC 9110, 10.2.3) in seconds; None if it is absent or malformed.

    Args:
        now: the time in Unix seconds, subtracted from a ``Retry-After`` that is a date.
    """
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _detail(response: httpx.Response, problem: dict[str, Any]) -> str:
    if isinstance(problem.get("detail"), str):
        return str(problem["detail"])
    where = response.request.url
    if response.has_redirect_location:
        return f"{where} redirects to {response.headers['location']}; give that URL to the client"
    text = " ".join(response.text.split())[:_SHOWN]
    return f"{where} gave no reason{f': {text}' if text else ''}"

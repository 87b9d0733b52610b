"""Why a call came to nothing: the server refused it, nothing answered, or what answered is no ken-serve."""

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
    """Base of the client's errors."""


class ApiError(ClientError):
    """The server answered, but not as asked.

    Attributes:
        status: of HTTP.
        title: the kind of failure in a few words.
        detail: what was found, what was expected, what to do.
        request_id: names the request in the server's log; None where something in front of the server answered.
        retry_after: seconds, None where trying again later is of no use.
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
        sent: whether the server may have acted on the call all the same.
    """

    def __init__(self, message: str, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ReplyError(ClientError):
    """An answer came that no ken-serve gives."""


def api_error(response: httpx.Response, now: float | None = None) -> ApiError:
    """What an answer other than success says; RFC 9457 problem JSON if it is of the server's own making.

    Args:
        now: Unix seconds, by default the present.
    """
    problem = _problem(response)
    title = str(problem.get("title") or response.reason_phrase or "unknown status")
    request_id = problem.get("request_id") or response.headers.get("x-request-id")
    retry_after = seconds_of(response.headers.get("retry-after"), time.time() if now is None else now)
    return ApiError(response.status_code, title, _detail(response, problem), request_id, retry_after)


def unreachable(error: httpx.RequestError, where: str, seconds: float) -> UnreachableError:
    """What it means that httpx got no answer.

    Args:
        where: the server's URL.
        seconds: how long the call has been tried.
    """
    sent = not isinstance(error, _NEVER_SENT)
    if isinstance(error, httpx.TimeoutException):
        return UnreachableError(f"{where} did not answer within {seconds:.3g} s", sent)
    reason = str(error) or type(error).__name__
    advice = "" if sent else "; is the server up, and the URL right?"
    return UnreachableError(f"{where} does not answer: {reason}{advice}", sent)


def seconds_of(retry_after: str | None, now: float) -> float | None:
    """The header ``Retry-After`` (RFC 9110, 10.2.3) as seconds; None where it is absent or of another form.

    Args:
        now: Unix seconds, to reckon a date from.
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
        return f"{where} redirects to {response.headers['location']}; give the client that URL"
    text = " ".join(response.text.split())[:_SHOWN]
    return f"{where} answered without saying why{f': {text}' if text else ''}"

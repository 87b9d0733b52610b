"""Errors of the server. Each knows the HTTP status it is answered with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ken_core.errors import KenError


class ServingError(KenError):
    """Base of the server's errors.

    Args:
        reason: what was found, what was expected, what to do.
        at: see below; the message then begins with it.

    Attributes:
        status: the HTTP status.
        title: a short name, the same for all errors of a class.
        at: the part of the request that is wrong, from outer to inner name or number with a dot between them, such as
            ``inputs.3.question`` or ``dimensions``. None: no part is to blame, or several are.
        code: the name that OpenAI's protocol has for such a failure. None: it has none.
        retry_after: seconds until trying again may help. None: it does not help.
        headers: what else the HTTP answer must carry.
    """

    status = 500
    title = "Internal error"
    code: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, reason: str, at: str | None = None) -> None:
        super().__init__(reason if at is None else f"{at}: {reason}")
        self.at = at


class InternalError(ServingError):
    """Nobody's fault but the server's."""


class BadRequestError(ServingError):
    status = 400
    title = "Bad request"


class InvalidInputError(ServingError):
    status = 422
    title = "Invalid input"


class TooLargeError(ServingError):
    status = 413
    title = "Request too large"


class UnsupportedMediaError(ServingError):
    """A body is in a character set that is not taken."""

    status = 415
    title = "Unsupported media type"


class UnsupportedEncodingError(UnsupportedMediaError):
    """A body is compressed in a way that is not taken; RFC 9110 has the answer name those that are."""

    headers = MappingProxyType({"Accept-Encoding": "gzip, deflate, zstd"})


class UnauthorizedError(ServingError):
    """No key was given, or none that is valid. The challenge is that of RFC 6750."""

    status = 401
    title = "Unauthorized"
    code = "invalid_api_key"
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="ken-serve"'})


class SlowBodyError(ServingError):
    """The client did not send what it announced."""

    status = 408
    title = "Request timeout"


class ForbiddenError(ServingError):
    status = 403
    title = "Forbidden"
    code = "insufficient_permissions"


class UntrustedDeltaError(ForbiddenError):
    """No trusted key signed what is to be published. 403: the request is sound, it is its maker who may not."""

    title = "Delta not trusted"


class RefusedDeltaError(InternalError):
    """A published delta is not loaded, for no trusted key signed it. 500: asking again, or otherwise, does not help."""

    title = "Delta not trusted"


class UnfitDeltaError(InternalError):
    """A published delta can never be served here. 500: asking again, or otherwise, does not help."""

    title = "Delta cannot be served"


class UnknownTaskError(ServingError):
    status = 404
    title = "Unknown task"
    code = "model_not_found"


class UnknownKeyError(ServingError):
    """No API key has this id."""

    status = 404
    title = "Unknown key"


class ConflictError(ServingError):
    status = 409
    title = "Conflict"


class OtherLabelsError(ConflictError):
    """A version would give a task's callers answers of another form than they get, and nobody said that it may."""

    title = "Other labels or kind"


class OverloadedError(ServingError):
    """The queue is full."""

    status = 429
    title = "Too many requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(ServingError):
    """Starting, draining, or the store is down and no tier holds what is asked for."""

    status = 503
    title = "Unavailable"
    retry_after = 1.0


class UnsupportedKindError(ServingError):
    """The task's head is of a kind no pipeline answers for."""

    status = 501
    title = "Task kind not supported"


class DeadlineError(ServingError):
    status = 504
    title = "Deadline exceeded"


class StoreError(UnavailableError):
    """The store cannot be reached, or does not hold what it should."""

    title = "Store unavailable"


class ChangedBaseError(UnavailableError):
    """The base's file was written to, so that no further delta can be loaded; those that are loaded are still right."""

    title = "Base changed"
    retry_after = 10.0


class StartError(ServingError):
    """The server cannot start: bad settings, a port in use, no base, no store."""

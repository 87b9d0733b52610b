"""Errors of the server. Each class has the HTTP status of its answer."""

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
        at: the part of the request that is wrong: names and numbers from the outermost to the innermost, with a dot
            between them, such as ``inputs.3.question`` or ``dimensions``. None: no part is wrong, or several are.
        code: the name that OpenAI's protocol has for such a failure. None: it has none.
        retry_after: seconds until trying again may help. None: trying again does not help.
        headers: further headers that the HTTP answer must have.
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
    """The server failed. The request is not to blame."""


class BadRequestError(ServingError):
    """The request cannot be read: its JSON, its parameters or its address are wrong."""

    status = 400
    title = "Bad request"


class InvalidInputError(ServingError):
    """The request can be read, and asks for what its task cannot do."""

    status = 422
    title = "Invalid input"


class ContextLengthError(InvalidInputError):
    """A prompt, or a prompt and what is to follow it, has more tokens than the model takes. Clients that shorten chats,
    or turn to a model that takes more, know it by its code."""

    code = "context_length_exceeded"


class TooLargeError(ServingError):
    """The request has more bytes, inputs, tokens or tasks than one request may have."""

    status = 413
    title = "Request too large"


class UnsupportedMediaError(ServingError):
    """The server does not read the character set of a body."""

    status = 415
    title = "Unsupported media type"


class UnsupportedEncodingError(UnsupportedMediaError):
    """The server does not read the compression of a body. RFC 9110: the answer names the encodings that it reads."""

    headers = MappingProxyType({"Accept-Encoding": "gzip, deflate, zstd"})


class UnmergeableError(InvalidInputError):
    """The versions that a request wants merged cannot be merged."""

    title = "Cannot be merged"


class UnauthorizedError(ServingError):
    """The request has no API key, or one that is not valid. The challenge is that of RFC 6750."""

    status = 401
    title = "Unauthorized"
    code = "invalid_api_key"
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer realm="ken-serve"'})


class SlowBodyError(ServingError):
    """The client did not send all of the body in time."""

    status = 408
    title = "Request timeout"


class ForbiddenError(ServingError):
    """The key is valid, and lacks the scope or the task that the request needs."""

    status = 403
    title = "Forbidden"
    code = "insufficient_permissions"


class UntrustedDeltaError(ForbiddenError):
    """A delta cannot be published because no trusted key signed it. 403: the request is sound, its sender may not."""

    title = "Delta not trusted"


class RefusedDeltaError(InternalError):
    """A published delta is not loaded because no trusted key signed it. 500: no other request would help."""

    title = "Delta not trusted"


class UnfitDeltaError(InternalError):
    """A published delta can never be served on this base. 500: no other request would help."""

    title = "Delta cannot be served"


class UnknownTaskError(ServingError):
    """There is no such task, alias or version."""

    status = 404
    title = "Unknown task"
    code = "model_not_found"


class UnknownKeyError(ServingError):
    """No API key has this id."""

    status = 404
    title = "Unknown key"


class ConflictError(ServingError):
    """What the request wants to change is not, or no longer, as it must be for that."""

    status = 409
    title = "Conflict"


class OtherLabelsError(ConflictError):
    """A version's answers would have another form than those that a task's callers get now, and the change does not
    allow that."""

    title = "Other labels or kind"


class OverloadedError(ServingError):
    """The replica has as much to do as it may have."""

    status = 429
    title = "Too many requests"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(ServingError):
    """The replica is starting or draining, or the store is down and no tier holds the delta."""

    status = 503
    title = "Unavailable"
    retry_after: float | None = 1.0


class UnsupportedKindError(ServingError):
    """No pipeline answers for the kind of a task's head."""

    status = 501
    title = "Task kind not supported"


class DeadlineError(ServingError):
    """There was no answer in time."""

    status = 504
    title = "Deadline exceeded"


class StoreError(UnavailableError):
    """The store cannot be reached, or lacks something that it should hold."""

    title = "Store unavailable"


class NoRoomError(UnavailableError):
    """A file that is needed for the answer cannot be written: the disk is full, or takes no files."""

    title = "Disk takes no files"
    retry_after = 10.0


class ForeignPlacementError(StoreError):
    """What the store holds as the placement of tasks is none. The replica that computes placements replaces it."""


class StoreFullError(StoreError):
    """The store has no room for a delta. Trying again does not help before somebody makes room."""

    status = 507
    title = "Store full"
    retry_after = None


class ChangedBaseError(UnavailableError):
    """The base's file was written to, so no further delta can be loaded. Deltas that are loaded still answer right."""

    title = "Base changed"
    retry_after = 10.0


class StartError(ServingError):
    """The server cannot start: bad settings, a port in use, no base, no store."""

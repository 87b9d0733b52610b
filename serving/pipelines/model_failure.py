"""What a client is told when a model fails on its inputs."""

from __future__ import annotations

import logging
from typing import Any

from ken_core import CheckpointChangedError, KenError, PoisonedError
from serving.errors import ChangedBaseError, InternalError, ServingError, UnavailableError

_log = logging.getLogger(__name__)


def told(error: Exception, digest: str, what: str, poisoned: Any) -> Exception:
    """The error for the client; the log has the cause.

    Args:
        digest: of the delta whose model failed.
        what: for the log: what failed.
        poisoned: the gauge that says that the weights must not be used.
    """
    if isinstance(error, PoisonedError):
        poisoned.set(1)
        return UnavailableError("this replica's weights are in an unknown state; it is being replaced")
    if isinstance(error, CheckpointChangedError):
        return ChangedBaseError(str(error))
    if not isinstance(error, ServingError):
        _log.exception("%s failed", what, exc_info=error)
    if isinstance(error, KenError):
        return error
    made = InternalError(f"the model of delta {digest} failed on these inputs; the server's log says how")
    made.__cause__ = error
    return made

"""Who changed what: one line for every change, done or refused."""

from __future__ import annotations

import logging
from typing import Any, Literal

from serving.telemetry.logs import AUDIT

_log = logging.getLogger(AUDIT)


def audit(
    action: str,
    who: str,
    outcome: Literal["done", "refused", "failed"],
    task: str | None = None,
    request_id: str | None = None,
    **detail: Any,
) -> None:
    """Write one line to the logger ``ken.audit``.

    Args:
        action: such as ``publish``, ``promote``, ``delete``, ``key.create``.
        who: a principal's name.
        outcome: failed where it may or may not have been made: the store did not answer.
        request_id: only outside of a request; within one the line has it already.
        detail: what else is worth keeping, such as a digest, an alias, or why it was refused.
    """
    about = f" {task}" if task else ""
    extra = {"action": action, "who": who, "outcome": outcome, "task": task, "request_id": request_id}
    _log.info("%s%s by %s: %s", action, about, who, outcome, extra={**extra, "detail": detail or None})

"""The audit log: one line for every change, whether it was done, refused or failed."""

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
        who: the name of the principal who asked for the change.
        outcome: ``failed`` if the store did not answer, so that the change may or may not have been made.
        request_id: to be given only outside of a request; within one, the formatter adds the request's id.
        detail: further fields, such as a digest, an alias, or the reason for a refusal.
    """
    about = f" {task}" if task else ""
    extra = {"action": action, "who": who, "outcome": outcome, "task": task, "request_id": request_id}
    _log.info("%s%s by %s: %s", action, about, who, outcome, extra={**extra, "detail": detail or None})

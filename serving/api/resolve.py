"""Which task, and which of its deltas, a request is for: one rule for every protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import Request

from serving.errors import BadRequestError
from serving.service import Service

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Resolved:
    task: str
    digest: str


class Resolver:
    """Finds the delta that answers a request."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __call__(self, request: Request, named: str | None) -> Resolved:
        """Resolve a task given in the path or body, else in ``X-Ken-Task``.

        ``name@alias`` chooses an alias other than ``live``; ``name@digest`` or ``X-Ken-Delta`` pins one of the task's
        versions.

        Raises:
            BadRequestError: no task is named anywhere.
            UnknownTaskError: no such task, alias or version.
        """
        named = named or request.headers.get("x-ken-task")
        if not named:
            raise BadRequestError("no task is named; put it in the path, in the body's model, or in X-Ken-Task")
        name, _, version = named.partition("@")
        if _DIGEST.fullmatch(version):
            return Resolved(name, self._service.table.resolve(name, digest=version))
        digest = self._service.table.resolve(name, version or "live", request.headers.get("x-ken-delta"))
        return Resolved(name, digest)

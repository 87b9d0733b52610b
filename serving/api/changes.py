"""Changes of the store over HTTP: who may make them, that they are noted, and that every replica has seen them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator, permit
from serving.api.failures import request_id
from serving.errors import ServingError, StoreError
from serving.security.keys import Principal, Scope
from serving.service import Service
from serving.store import Store
from serving.telemetry.audit import audit

MOST_SECONDS = 60.0
_POLL_SECONDS = 0.05

Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS)]
Wait = Annotated[
    Seconds | None, Query(description="seconds to wait until every replica has seen the change; none by default")
]
AllowOtherLabels = Annotated[
    bool, Field(description="also where answers would have other labels, or be of another kind, than they have now")
]
Force = Annotated[bool, Query(description="also where an alias or the route points at it")]


class Changed(BaseModel):
    """A change that was made."""

    task: str | None = Field(None, description="none: it is no task's")
    revision: int = Field(description="the store's revision after the change")
    pending: list[str] = Field([], description="replicas that had not seen it when the time to wait was over")


class Changes:
    """Makes changes for those who may make them; each leaves one line in the audit log, done or refused."""

    def __init__(self, service: Service, authenticator: Authenticator) -> None:
        self._store = service.store
        self._authenticator = authenticator

    def begin(self, request: Request, scope: Scope, action: str, task: str | None = None) -> Change:
        """A change that the caller may make; nothing is done yet, so that a body is read only after this.

        Args:
            scope: what the caller's key must cover.
            action: its name in the audit log.

        Raises:
            UnauthorizedError, ForbiddenError: the caller may not.
        """
        found, principal = request_id(request.scope), None
        try:
            principal = self._authenticator.principal(request)
            permit(principal, scope, task)
        except ServingError:
            who = principal.name if principal else "unknown"
            audit(action, who, "refused", task=task, request_id=found)
            raise
        return Change(self._store, principal, action, task, found)


@dataclass(frozen=True)
class Change:
    """One change, not made yet."""

    store: Store
    principal: Principal
    action: str
    task: str | None
    request_id: str | None

    @property
    def who(self) -> str:
        """The caller's name."""
        return self.principal.name

    async def make(
        self,
        work: Callable[[str], int],
        wait: float | None = None,
        learned: Mapping[str, object] = MappingProxyType({}),
        **detail: object,
    ) -> Changed:
        """Make it.

        Args:
            work: given the caller's name, makes the change and returns the store's revision; runs in a thread.
            wait: seconds until every live replica has seen it.
            learned: what `work` finds out and adds, for the audit log; in place of what `detail` says of it.
            detail: more for the audit log.

        Raises:
            StoreError: the store does not answer.
        """
        outcome: Literal["done", "refused", "failed"] = "failed"
        try:
            revision = await asyncio.to_thread(work, self.who)
            outcome = "done"
        except StoreError as error:
            raise StoreError(f"nothing was changed: {error}") from error
        except ServingError:
            outcome = "refused"
            raise
        finally:
            told = {**detail, **learned}
            audit(self.action, self.who, outcome, task=self.task, request_id=self.request_id, **told)
        return Changed(task=self.task, revision=revision, pending=await self._pending(revision, wait))

    async def _pending(self, revision: int, seconds: float | None) -> list[str]:
        """Replicas that have not seen a revision when the time is up. Polls: threads are for work."""
        if seconds is None:
            return []
        deadline = time.monotonic() + seconds
        while True:
            seen = await asyncio.to_thread(self.store.replicas.revisions)
            behind = sorted(name for name, at in seen.items() if at < revision)
            if not behind or time.monotonic() > deadline:
                return behind
            await asyncio.sleep(_POLL_SECONDS)

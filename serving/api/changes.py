"""Changes of the store over HTTP: permission, a line in the audit log, and waiting until every replica knows them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from fastapi import Query, Request
from pydantic import BaseModel, Field

from serving.api.auth import Authenticator, permit
from serving.api.failures import request_id
from serving.errors import ServingError, StoreError
from serving.security.keys import Principal, Scope
from serving.service import Service
from serving.store import Store
from serving.store.replicas import Spread
from serving.telemetry.audit import audit

T = TypeVar("T")
MOST_SECONDS = 60.0
_POLL_SECONDS = 0.05

Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS)]
Wait = Annotated[
    Seconds | None, Query(description="seconds to wait until every replica has seen the change; none by default")
]
AllowOtherLabels = Annotated[
    bool, Field(description="make the change even if answers get other labels, or another kind or form")
]
Force = Annotated[bool, Query(description="delete even if an alias or the route points at it")]


class SpreadAnswer(BaseModel):
    """Which replicas answer by a change, if the call waited for them."""

    seen: list[str] = Field([], description="replicas that answer by the change")
    pending: list[str] = Field([], description="replicas not known to answer by it when the time to wait was over")
    silent: dict[str, float] = Field(
        {}, description="those pending that are out of touch with the store, and for how many seconds"
    )


class Changed(BaseModel):
    """What was changed."""

    task: str | None = Field(None, description="the task that was changed; null for a change of no one task")
    revision: int = Field(description="the store's revision after the change")


class ChangeAnswer(SpreadAnswer, Changed):
    """A change that was made."""


class AuditedChanges:
    """Lets callers make the changes that their keys allow. Each change, done or refused, is a line in the audit log."""

    def __init__(self, service: Service, authenticator: Authenticator) -> None:
        self._store = service.store
        self._authenticator = authenticator

    def begin(self, request: Request, scope: Scope, action: str, task: str | None = None) -> PermittedChange:
        """Check that the caller may make a change. The change is not made yet: a route reads its body only after this.

        Args:
            scope: what the caller's key must have.
            action: the change's name in the audit log.
            task: the task that is changed; None: the whole server.

        Raises:
            UnauthorizedError, ForbiddenError, UnknownTaskError: the caller may not make it, see `permit`.
        """
        found, principal = request_id(request.scope), None
        try:
            principal = self._authenticator.principal(request)
            permit(principal, scope, task)
        except ServingError:
            who = principal.name if principal else "unknown"
            audit(action, who, "refused", task=task, request_id=found)
            raise
        return PermittedChange(self._store, principal, action, task, found)


@dataclass(frozen=True)
class PermittedChange:
    """A change that its caller may make, not made yet."""

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
    ) -> ChangeAnswer:
        """Make the change.

        Args:
            work: makes the change in the caller's name, its argument, and returns the store's revision; runs in a
                thread.
            wait: seconds to wait until every live replica has seen the change; None: do not wait.
            learned: facts for the audit log that `work` adds while it runs; they replace those of `detail`.
            detail: facts for the audit log that are known before.

        Raises:
            StoreError: the store does not answer, or is full.
            ServingError: the change was refused.
        """
        try:
            revision = await self.audited(work, learned, **detail)
        except StoreError as error:
            raise type(error)(f"nothing was changed: {error}") from error
        return ChangeAnswer(task=self.task, revision=revision, **asdict(await self._spread(revision, wait)))

    async def audited(
        self, work: Callable[[str], T], learned: Mapping[str, object] = MappingProxyType({}), **detail: object
    ) -> T:
        """Do work that gives the store no revision, and return its result. Arguments as in `make`.

        Raises:
            StoreError: the store does not answer; the work may be done in part.
            ServingError: the work was refused.
        """
        outcome: Literal["done", "refused", "failed"] = "failed"
        try:
            result = await asyncio.to_thread(work, self.who)
            outcome = "done"
            return result
        except StoreError:
            raise
        except ServingError:
            outcome = "refused"
            raise
        finally:
            told = {**detail, **learned}
            audit(self.action, self.who, outcome, task=self.task, request_id=self.request_id, **told)

    async def _spread(self, revision: int, seconds: float | None) -> Spread:
        """Which replicas have seen a revision when the time is up. Sleeps on the event loop, to hold no thread."""
        if seconds is None:
            return Spread()
        deadline = time.monotonic() + seconds
        while True:
            spread = await asyncio.to_thread(self.store.replicas.spread, revision)
            if not spread.pending or time.monotonic() > deadline:
                return spread
            await asyncio.sleep(_POLL_SECONDS)

"""Which task, and which of its deltas, a request is for: one rule for every protocol."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from serving.api.auth import Authenticator
from serving.api.clients import client_of
from serving.errors import BadRequestError
from serving.store import Task
from serving.tasks import TaskTable


@dataclass(frozen=True)
class Resolved:
    """The delta that answers a request.

    Attributes:
        client: who asks, see `client_of`.
        shadow: another one that is asked the same, only to compare; None: none.
    """

    task: str
    digest: str
    client: str
    shadow: str | None = None


class Resolver:
    """Finds the delta that answers a request, if the request's key may ask for it."""

    def __init__(self, table: TaskTable, authenticator: Authenticator) -> None:
        self._table = table
        self._authenticator = authenticator

    def __call__(self, request: Request, named: str | None, key: str | None = None) -> Resolved:
        """Resolve a task given in the path or body, else in ``X-Ken-Task``.

        ``name@alias`` chooses an alias; without one the task's route does, else ``live``. ``name@digest`` or
        ``X-Ken-Delta`` pins one of the task's versions, by its digest or how that begins. ``X-Ken-Key`` keeps who sends
        it at one of the versions that a route chooses from.

        Args:
            key: to stay by, where the protocol has a name of its own for it.

        Raises:
            BadRequestError: no task is named anywhere.
            UnauthorizedError, ForbiddenError: the request's key may not ask for it.
            UnknownTaskError: no such task, alias or version.
            InvalidInputError: several versions may be meant.
        """
        named = named or request.headers.get("x-ken-task")
        if not named:
            raise BadRequestError("no task is named; put it in the path, in the body's model, or in X-Ken-Task")
        name, _, version = named.partition("@")
        who = self._authenticator.require(request, "predict", name)
        stay_by, pin = key or request.headers.get("x-ken-key"), request.headers.get("x-ken-delta")
        digest = self._table.resolve(name, version or None, pin, stay_by, who.sees)
        shadow = None if version or pin is not None else self._table.shadow(name)
        return Resolved(name, digest, client_of(request, who), shadow if shadow != digest else None)

    def authenticate(self, request: Request) -> None:
        """Raises `UnauthorizedError` or `ForbiddenError` unless the request may ask for some task."""
        self._authenticator.require(request, "predict")

    def visible(self, request: Request) -> list[Task]:
        """All tasks the request's key may ask for, by name."""
        principal = self._authenticator.require(request, "predict")
        return [task for name, task in sorted(self._table.current.tasks.items()) if principal.may("predict", name)]

    def find(self, request: Request, name: str) -> Task:
        """One task; raises as resolving it does."""
        who = self._authenticator.require(request, "predict", name)
        return self._table.find(name, who.sees)

"""Which task, and which of its deltas, answers a request: one rule for all protocols."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from serving.api.auth import Authenticator, permit
from serving.api.clients import client_of
from serving.api.merging import MergedModel
from serving.errors import BadRequestError
from serving.routing.merges import Merge
from serving.store import Task
from serving.tasks import TaskTable


@dataclass(frozen=True)
class Resolved:
    """The delta that answers a request.

    Attributes:
        task: its name, without alias; of a merge, the name of the task whose head it has.
        digest: of the delta, or of the merge.
        client: the client, see `client_of`.
        shadow: digest of another delta that gets a copy of the request, only to compare the answers; None: no delta.
        merge: the merge of tasks that answers; None: a version of one task does.
    """

    task: str
    digest: str
    client: str
    shadow: str | None = None
    merge: Merge | None = None


class Resolver:
    """Finds the delta that answers a request, if the request's key may query the task."""

    def __init__(self, table: TaskTable, authenticator: Authenticator) -> None:
        self._table = table
        self._authenticator = authenticator

    def __call__(self, request: Request, named: str | None, key: str | None = None) -> Resolved:
        """Resolve a task given in the path or body, else in ``X-Ken-Task``.

        ``name@alias`` chooses an alias. Without an alias the task's route chooses a version, and without a route it is
        ``live``. ``name@digest`` or ``X-Ken-Delta`` pins one of the task's versions, by its digest or the first digits
        of it. All requests with the same ``X-Ken-Key`` get the same one of a route's versions.

        Args:
            named: the task as the path or the body names it.
            key: in place of ``X-Ken-Key``, where the protocol has a field of its own for it.

        Raises:
            BadRequestError: the request names no task.
            UnauthorizedError, ForbiddenError: the request's key may not query the task.
            UnknownTaskError: there is no such task, alias or version.
            InvalidInputError: several versions begin with the digits that the request gives.
        """
        named = named or request.headers.get("x-ken-task")
        if not named:
            raise BadRequestError(
                "the request names no task; name one in the path, in the body's model, or in X-Ken-Task"
            )
        name, _, version = named.partition("@")
        who = self._authenticator.require(request, "predict", name)
        stay_by, pin = key or request.headers.get("x-ken-key"), request.headers.get("x-ken-delta")
        digest = self._table.resolve(name, version or None, pin, stay_by, who.sees)
        shadow = None if version or pin is not None else self._table.shadow(name)
        return Resolved(name, digest, client_of(request, who), shadow if shadow != digest else None)

    def merge(self, request: Request, asked: MergedModel, path: str | None) -> Resolved:
        """Resolve a merge of tasks, all of them by one state of the table.

        A task without alias or version is its live version. Its route does not matter, since by chance the same merge
        would be another one each time. No shadow gets a copy.

        Args:
            path: the task that the path names; None: it names none.

        Raises:
            BadRequestError: the request pins a version by a header, too.
            UnauthorizedError, ForbiddenError: the request's key may not query one of the tasks.
            UnknownTaskError: there is no such task, alias or version.
            InvalidInputError: as `MergedModel.head_beside` and `MergedModel.of_versions`.
        """
        if "x-ken-delta" in request.headers:
            raise BadRequestError(
                "X-Ken-Delta pins a version of one task, and this merges tasks; send it without, and name versions as "
                "task@digest"
            )
        who = self._authenticator.require(request, "predict")
        for name in asked.names:
            permit(who, "predict", name)
        head = asked.head_beside(path)
        merge = asked.of_versions(self._table.versions(asked.merge, who.sees), head)
        return Resolved(head.partition("@")[0], merge.digest, client_of(request, who), merge=merge)

    def authenticate(self, request: Request) -> None:
        """Raises `UnauthorizedError` or `ForbiddenError` unless the request's key may query some task."""
        self._authenticator.require(request, "predict")

    def visible(self, request: Request) -> list[Task]:
        """All tasks that the request's key may query, in the order of their names."""
        principal = self._authenticator.require(request, "predict")
        return [task for name, task in sorted(self._table.current.tasks.items()) if principal.may("predict", name)]

    def find(self, request: Request, name: str) -> Task:
        """One task. Raises as resolving the task does."""
        who = self._authenticator.require(request, "predict", name)
        return self._table.find(name, who.sees)

"""One question to many tasks. Each task answers or fails for itself, as if the question had been put to it alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from fastapi import Request

from serving.admission import Admission
from serving.api.failures import logged
from serving.api.predicting import Predictor, TaskQuery, timed
from serving.errors import (
    BadRequestError,
    DeadlineError,
    OverloadedError,
    ServingError,
    UnavailableError,
    UnknownTaskError,
)
from serving.replica.inference import Prediction
from serving.replica.shared_rows import SharedRows
from serving.telemetry.measured import Measured

_FOR_NOW = (OverloadedError, UnavailableError, DeadlineError)
"""Failures that are no task's own. The same question may be answered when it is asked again."""


@dataclass(frozen=True)
class ManyTasksQuery:
    """A question, and the tasks it is put to: names as in a path, or patterns of names."""

    tasks: Sequence[str]
    query: TaskQuery


@dataclass(frozen=True)
class TaskOutcome:
    """What came of the question to one task.

    Attributes:
        task: as it was asked for, with its alias or version; a pattern that no task matches.
    """

    task: str
    result: Prediction | ServingError


class FanOut:
    """Puts a question to many tasks at once.

    The tasks run side by side, so that their rows can share batches. Tasks that encode alike share the rows. For
    admission and metrics, each task's part is a prediction of its own.
    """

    def __init__(self, admission: Admission, predictor: Predictor) -> None:
        self._admission = admission
        self._predictor = predictor

    async def __call__(self, request: Request, read: Callable[[], Awaitable[ManyTasksQuery]]) -> list[TaskOutcome]:
        """The outcome of each task, in the order asked; those of a pattern by name.

        Args:
            read: reads the body; called once the request was admitted.

        Raises:
            ServingError: the request as a whole is refused. Or no task answered, and one of them was too busy, not
                there for the moment or too late: then this is the first such error.
        """
        whole, tasks = Measured(), list[Measured]()
        try:
            with timed(whole):
                outcomes = await self._ask(request, read, tasks)
                _refuse_unless_taken(outcomes)
                return outcomes
        finally:
            if not tasks:
                self._predictor.count(whole)
            self._predictor.trace(request, whole, tasks)

    async def _ask(
        self, request: Request, read: Callable[[], Awaitable[ManyTasksQuery]], measured: list[Measured]
    ) -> list[TaskOutcome]:
        timeout = self._predictor.admit(request)
        _refuse_pin(request)
        self._predictor.resolve.authenticate(request)
        asked = await read()
        self._admission.check_tasks(len(asked.tasks))
        tasks = self._expanded(request, asked.tasks)
        self._admission.check_tasks(len(tasks))
        self._admission.check_count(len(asked.query.inputs), len(tasks))
        measured += [Measured() for _ in tasks]
        async with SharedRows(len(tasks)) as shared, asyncio.TaskGroup() as group:
            asking = [
                group.create_task(self._outcome(request, task, asked.query, timeout, one, shared))
                for task, one in zip(tasks, measured, strict=True)
            ]
        return [one.result() for one in asking]

    def _expanded(self, request: Request, asked: Sequence[str]) -> list[str]:
        if not any(map(is_pattern, asked)):
            return expanded(asked, ())
        return expanded(asked, [task.name for task in self._predictor.resolve.visible(request)])

    async def _outcome(
        self, request: Request, task: str, query: TaskQuery, timeout: float, measured: Measured, shared: SharedRows
    ) -> TaskOutcome:
        try:
            with timed(measured):
                if is_pattern(task):
                    raise UnknownTaskError(f"no task that this request may ask has a name that matches {task!r}")
                prediction = await self._predictor.answer(request, task, query, timeout, measured, shared)
                return TaskOutcome(task, prediction)
        except Exception as error:
            return TaskOutcome(task, logged(request.scope, error))
        finally:
            self._predictor.count(measured)


def is_pattern(task: str) -> bool:
    """Whether what is asked for is a pattern of names, such as ``tox*``, ``*`` or ``spam-?@canary``."""
    return not {"*", "?", "["}.isdisjoint(task.partition("@")[0])


def expanded(asked: Iterable[str], names: Sequence[str]) -> list[str]:
    """What is asked for, each once, at its first place. A pattern is replaced by the names that match it.

    Args:
        asked: names and patterns (as of `fnmatch`), with or without ``@`` and an alias or version, which all names of
            a pattern get. A pattern that no name matches stays.
        names: of the tasks that patterns choose from, in their order.
    """
    found: dict[str, None] = {}
    for one in asked:
        pattern, at, version = one.partition("@")
        matching = [name for name in names if fnmatchcase(name, pattern)] if is_pattern(one) else []
        found.update(dict.fromkeys([f"{name}{at}{version}" for name in matching] or [one]))
    return list(found)


def _refuse_pin(request: Request) -> None:
    if "x-ken-delta" in request.headers:
        raise BadRequestError(
            "X-Ken-Delta pins a version of one task, and this asks many; send it without, and name a task's version "
            "as task@digest"
        )


def _refuse_unless_taken(outcomes: Sequence[TaskOutcome]) -> None:
    """Fail the request as a whole if nothing but failures came of it, and asking again may help."""
    failures = [outcome.result for outcome in outcomes if isinstance(outcome.result, ServingError)]
    for_now = [failure for failure in failures if isinstance(failure, _FOR_NOW)]
    if len(failures) == len(outcomes) and for_now:
        raise for_now[0]

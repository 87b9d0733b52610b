"""Admission: which requests a replica takes. All limits on load and size, with their counters and refusals.

Pure: no HTTP, no clock, no torch. Callers pass the engine's line, since only the engine knows how long it is.
A prediction meets the checks in this order:

| when | what is called | what is counted | how it refuses |
|---|---|---|---|
| the request arrives | `request` | `requests`, until the last byte of the answer | |
| before its key and its body are read | `check_open` | | 503, Retry-After: 1 s |
| then | `check_free` | | 429, Retry-After: the backlog |
| its body is read and its task is resolved | `check_tasks`, `check_count` | | 422 |
| it begins to run | `prediction`, with `check_free` again | `predictions`, until it is answered | as above |
| it waits for its task, then for its encoding | `preparation` | `preparing`, in inputs | 429 as above |
| its inputs are encoded | `check_tokens` | | 413 |
| its rows enter the engine's line | `check_line`, by the engine | the engine's line | 429 as above |

A request to many tasks is one HTTP request, and a prediction for each task: each prediction waits, is refused and is
counted like any other. The limits of one request hold for all its tasks together: each task has the inputs and their
tokens again.

A request whose body has not arrived is no prediction yet, so it takes no prediction's place. Copies of requests for a
task's shadow count only in `preparing` and in the engine's line. They start only while the replica is not `is_busy`.
When a running prediction is refused with 429, all copies are given up, and the prediction is tried once more
(`serving.api.predicting`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from serving.errors import InvalidInputError, OverloadedError, TooLargeError, UnavailableError


@dataclass(frozen=True)
class AdmissionLimits:
    """The most that a replica takes.

    Attributes:
        max_requests: predictions at the same time.
        max_inputs: inputs in one request.
        max_tokens: tokens in one request, all its inputs together.
        max_tasks: tasks in one request.
        queue_rows: inputs that wait, whether for their task, their encoding or their batch.
        batch_rows: inputs in one forward pass; a replica with more of them waiting is busy.
    """

    max_requests: int = 1024
    max_inputs: int = 256
    max_tokens: int = 262_144
    queue_rows: int = 2048
    batch_rows: int = 32
    max_tasks: int = 64


class Line(Protocol):
    """The rows that wait for a forward pass: `serving.engine.engine.Engine`."""

    @property
    def waiting(self) -> int:
        """Rows in line, abandoned ones that are not dropped yet among them."""

    @property
    def wanted(self) -> int:
        """Rows in line that are not abandoned."""

    def backlog_seconds(self) -> float:
        """Seconds that the line will take, after which a refused client may try again."""


class Admission:
    """Counts the requests of a replica and refuses further ones where a limit is reached.

    Only the event loop that answers requests changes the counters. `check_line` reads none of them, so that the engine
    may call it on any thread.

    Attributes:
        ready: whether the replica has started and not stopped.
        draining: whether the replica will stop and takes no further requests.
        requests: HTTP requests that have begun and whose answers are not sent yet.
        predictions: predictions that run.
        preparing: inputs that wait for their task to be on the device, or for their turn to be encoded.
    """

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits = limits or AdmissionLimits()
        self.ready = False
        self.draining = False
        self.requests = 0
        self.predictions = 0
        self.preparing = 0

    @property
    def is_open(self) -> bool:
        """Whether the replica takes requests."""
        return self.ready and not self.draining

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count an HTTP request from its start to the last byte of its answer, so that a drain can wait for it."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    def check_open(self) -> None:
        """Raises `UnavailableError` while the replica starts or drains."""
        if self.draining:
            raise UnavailableError("the server is stopping; another replica answers, or try again later")
        if not self.ready:
            raise UnavailableError("the server is starting; try again in a moment")

    def check_free(self, line: Line) -> None:
        """Raises `OverloadedError` while the most predictions run that may run at the same time."""
        most = self._limits.max_requests
        if self.predictions >= most:
            seconds = line.backlog_seconds()
            raise OverloadedError(f"{most} requests are in flight already; try again in {seconds:g} s", seconds)

    def check_tasks(self, tasks: int) -> None:
        """Raises `InvalidInputError` for more tasks than one request may name."""
        most = self._limits.max_tasks
        if tasks > most:
            raise InvalidInputError(
                f"found {tasks}, at most {most} are allowed in one request; name fewer, or raise "
                "KEN_MAX_TASKS_PER_REQUEST on the server",
                at="tasks",
            )

    def check_count(self, inputs: int, tasks: int = 1) -> None:
        """Raises `InvalidInputError` for a request without an input, or with more than a request may have.

        Args:
            tasks: tasks that the request asks about its inputs. Each task's inputs count.
        """
        most = self._limits.max_inputs
        if not inputs:
            raise InvalidInputError("expected at least one input", at="inputs")
        if inputs * tasks > most:
            found = inputs if tasks == 1 else f"{inputs} for each of {tasks} tasks"
            raise InvalidInputError(f"found {found}, at most {most} are allowed in one request", at="inputs")

    @contextmanager
    def prediction(self, line: Line) -> Iterator[None]:
        """Count a prediction while it runs.

        Raises:
            OverloadedError: as `check_free`.
        """
        self.check_free(line)
        self.predictions += 1
        try:
            yield
        finally:
            self.predictions -= 1

    @contextmanager
    def preparation(self, line: Line, inputs: int) -> Iterator[None]:
        """Count inputs that wait for their task or their encoding, as if they were in the engine's line already.

        Raises:
            OverloadedError: as `check_line`.
        """
        self._check_waiting(line, line.wanted + self.preparing, inputs)
        self.preparing += inputs
        try:
            yield
        finally:
            self.preparing -= inputs

    def check_tokens(self, tokens: int, tasks: int = 1) -> None:
        """Raises `TooLargeError` for more tokens than one request may have.

        Args:
            tokens: of one task's rows.
            tasks: tasks that the request asks. Each may have an equal share of the request's tokens, so that all of
                them together stay within the limit, whichever is encoded first.
        """
        most = self._limits.max_tokens
        if tokens * tasks > most:
            found = f"{tokens} tokens" if tasks == 1 else f"{tokens} tokens for each of {tasks} tasks"
            raise TooLargeError(
                f"the request has {found}, at most {most} are allowed in one; send fewer or shorter inputs"
            )

    def check_line(self, line: Line, rows: int) -> None:
        """Raises `OverloadedError` if the engine's line has no room for a request's rows.

        A request that is larger than the whole line is taken when nothing waits.
        """
        self._check_waiting(line, line.wanted, rows)

    def is_busy(self, line: Line) -> bool:
        """Whether more inputs wait than one forward pass takes, so that shadows would make requests wait."""
        return self.draining or line.waiting + self.preparing > self._limits.batch_rows

    def _check_waiting(self, line: Line, waiting: int, more: int) -> None:
        if waiting and waiting + more > self._limits.queue_rows:
            seconds = line.backlog_seconds()
            raise OverloadedError(f"{waiting} inputs wait already; try again in {seconds:g} s", seconds)

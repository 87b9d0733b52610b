"""Where answers to many inputs come from: a server, or a task in this process. They are the same by either way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson
import typer

from ken_core.errors import KenError
from serving.cli.targets import Target, delta_file
from serving.terminal import say

if TYPE_CHECKING:
    from serving.client import AsyncClient, Prediction
    from serving.local.task import LocalTask

_OF_THE_INPUT = (400, 413, 422)
"""Statuses that blame an input, and not the server or the key."""
_SECONDS = 120.0
_LARGE = 1 << 20
"""Bytes of inputs, from which on a lost connection may be the server's refusal."""
_ATTEMPTS = 10
"""Of a request, within `_SECONDS`: as long as a server takes to start anew."""


@dataclass(frozen=True)
class Given:
    """The answer to one input: its output, or why there is none."""

    output: Any = None
    truncated: bool = False
    error: str | None = None


class Answerer(Protocol):
    """One version of a task.

    Attributes:
        digest: of the delta; of a folder, the fingerprint of its weights.
        kind: the kind of question that is asked; None: it is known once there are answers.
        labels: the names of a head's labels by number; None: they are not known.
    """

    digest: str
    kind: str | None
    labels: Sequence[str] | None

    async def answer(self, inputs: Sequence[Any]) -> list[Given]: ...


@asynccontextmanager
async def answerer(
    target: Target,
    base: str | None,
    url: str | None,
    redis_url: str | None,
    data_dir: Path | None,
    namespace: str,
    *,
    kind: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> AsyncIterator[Answerer]:
    """Opens a target, and pins its version: all answers come from one delta.

    Args:
        kind: of the question; None: the task's own.
        parameters: of the kind.
    """
    if target.kind == "served":
        from serving.client import AsyncClient, Retries
        from serving.routing.versions import version_of

        assert url is not None
        key = os.environ.get("KEN_API_KEY") or None
        async with AsyncClient(url, key) as hasty:  # a wrong URL is told at once
            digest = version_of(await hasty.task(target.task), target.version)
        retries = Retries(attempts=_ATTEMPTS, first=0.5)
        async with (
            AsyncClient(url, key, timeout=_SECONDS, retries=retries) as patient,
            AsyncClient(url, key, timeout=_SECONDS, retries=Retries(attempts=2)) as hasty,
        ):
            yield _Served(patient, hasty, target.task, digest, kind, parameters or {})
        return
    yield _Local(_local_task(target, base, redis_url, data_dir, namespace), kind, parameters or {})


def _local_task(
    target: Target, base: str | None, redis_url: str | None, data_dir: Path | None, namespace: str
) -> LocalTask:
    from ken_core import open_base, open_tuned
    from ken_core.trainer_folder import choose
    from serving.local.task import LocalTask

    if target.kind == "folder":
        chosen = choose(target.name)
        if chosen.why:
            say(f"taking {chosen.name}, {chosen.why}")
        return LocalTask.of_folder(open_tuned(chosen.name))
    if base is None:
        of_file = f"{target.name} is a delta file; give the base that it belongs to"
        of_store = f"{target.name} is a task of the store; give the base of its delta, or --url to ask a server"
        raise typer.BadParameter(of_file if target.kind == "file" else of_store, param_hint="--base")
    with delta_file(target, redis_url, data_dir, namespace) as file:
        return LocalTask.of_delta(open_base(base), file)


class _Served:
    """A version of a task on a server.

    Args:
        patient: a client that waits for a server which starts anew.
        hasty: one that gives up soon, for large requests.
    """

    def __init__(
        self,
        patient: AsyncClient,
        hasty: AsyncClient,
        task: str,
        digest: str,
        kind: str | None,
        parameters: Mapping[str, Any],
    ) -> None:
        self._patient, self._hasty = patient, hasty
        self._task, self.digest = task, digest
        self.kind = kind
        self.labels: Sequence[str] | None = None
        self._parameters = parameters

    async def answer(self, inputs: Sequence[Any]) -> list[Given]:
        from serving.client import ApiError

        reason: str | None = None
        try:
            found = await self._predict(inputs)
            if found is not None:
                self.kind = found.kind
                return [Given(output, i in found.truncated) for i, output in enumerate(found.outputs)]
            reason = "the server closes the connection while it is sent, so it is too large for it; send less"
        except ApiError as error:
            if error.status not in _OF_THE_INPUT:
                raise
            reason = error.detail
        if len(inputs) == 1:
            return [Given(error=reason)]
        return [one for alone in inputs for one in await self.answer([alone])]

    async def _predict(self, inputs: Sequence[Any]) -> Prediction | None:
        """The server's answer; None if the server is there, but takes no request so large.

        A server refuses a body that is too large before all of it has come, and closes the connection. To a client that
        still sends, this looks like the loss of the server.
        """
        from serving.client import UnreachableError

        if len(orjson.dumps(inputs)) < _LARGE:
            return await self._asked(self._patient, inputs)
        for _ in range(2):
            try:
                return await self._asked(self._hasty, inputs)
            except UnreachableError:
                await self._patient.task(self._task)  # raises if the server is lost indeed
        return None

    async def _asked(self, client: AsyncClient, inputs: Sequence[Any]) -> Prediction:
        return await client.predict(
            self._task, list(inputs), parameters=self._parameters or None, kind=self.kind, digest=self.digest
        )


class _Local:
    def __init__(self, task: LocalTask, kind: str | None, parameters: Mapping[str, Any]) -> None:
        self._task, self._parameters = task, parameters
        self.digest = task.digest
        self.labels: Sequence[str] | None = task.labels
        self.kind: str | None = kind or task.kind

    async def answer(self, inputs: Sequence[Any]) -> list[Given]:
        from serving.errors import InternalError, InvalidInputError, TooLargeError

        try:
            found = self._task.answer(inputs, self._parameters, self.kind)
        except (InvalidInputError, TooLargeError, InternalError) as error:
            if len(inputs) == 1:
                return [Given(error=str(error))]
            return [one for alone in inputs for one in await self.answer([alone])]
        return [Given(output, i in found.truncated) for i, output in enumerate(found.outputs)]


async def in_order(asked: Answerer, inputs: Sequence[Any], batch: int, in_flight: int) -> AsyncIterator[list[Given]]:
    """Answers in the order of the inputs, some at a time, with at most `in_flight` requests of `batch` inputs."""
    import asyncio  # imported late, since `ken --help` would wait for it

    running: deque[asyncio.Task[list[Given]]] = deque()
    starts = iter(range(0, len(inputs), batch))
    try:
        while True:
            while len(running) < in_flight and (start := next(starts, None)) is not None:
                running.append(asyncio.create_task(asked.answer(inputs[start : start + batch])))
            if not running:
                return
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def refuse_if_all_fail(answers: Sequence[Given]) -> None:
    """Raise `KenError` if all of several inputs failed for one reason: it is not theirs, but the parameters', say."""
    reasons = {one.error for one in answers}
    if len(answers) > 1 and len(reasons) == 1 and (reason := reasons.pop()) is not None:
        raise KenError(f"all of the first {len(answers)} inputs failed, so nothing more was asked: {reason}")

"""Sends the requests of many concurrent clients and records the replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ken_core.examples import Example
from serving.client import ApiError, AsyncClient, ClientError, Retries


@dataclass(frozen=True)
class Reply:
    """One request with its answer or failure.

    Attributes:
        status: HTTP status; 0 if no answer came.
        right: whether the predicted label is the example's.
        seconds: from sending to the answer.
        swap: seconds that the change of weights took; 0 if the task was active already.
        mixed: whether it ran beside requests to other tasks, in one forward pass.
        sent: when it was sent, in seconds of `time.perf_counter`.
    """

    task: str
    status: int
    digest: str
    right: bool
    seconds: float
    swap: float
    mixed: bool
    sent: float


async def send_all(
    url: str, requests: Sequence[tuple[str, Example]], clients: int, done: Callable[[int], None] = lambda n: None
) -> list[Reply]:
    """Send (task, example) pairs in order, at most `clients` at a time. `done` is called with the number of replies."""
    waiting = iter(requests)
    replies: list[Reply] = []
    async with connect(url) as client:

        async def work() -> None:
            for task, example in waiting:
                replies.append(await ask(client, task, example))
                done(len(replies))

        await asyncio.gather(*(work() for _ in range(clients)))
    return replies


async def send_until(
    url: str, requests: Sequence[tuple[str, Example]], clients: int, finished: Awaitable[object]
) -> list[Reply]:
    """Send (task, example) pairs, again and again, until `finished` is done."""
    replies: list[Reply] = []
    over = asyncio.ensure_future(finished)
    async with connect(url) as client:

        async def work(first: int) -> None:
            i = first
            while not over.done():
                task, example = requests[i % len(requests)]
                replies.append(await ask(client, task, example))
                i += clients

        await asyncio.gather(*(work(i) for i in range(clients)))
    await over
    return replies


def connect(url: str) -> AsyncClient:
    """A client that does not retry, so that each failure is seen."""
    return AsyncClient(url, retries=Retries(attempts=1))


async def ask(client: AsyncClient, task: str, example: Example) -> Reply:
    """Send one text to one task. The reply's status is 0 if no answer came."""
    sent = time.perf_counter()
    try:
        answer = await client.predict(task, example.text, parameters={"top_k": 1})
    except ClientError as error:
        status = error.status if isinstance(error, ApiError) else 0
        return Reply(task, status, "", False, time.perf_counter() - sent, 0.0, False, sent)
    seconds = time.perf_counter() - sent
    right = answer.outputs[0][0]["label"] == example.label
    return Reply(task, 200, answer.digest, right, seconds, answer.timing.get("swap", 0.0), answer.mixed, sent)

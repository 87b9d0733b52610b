"""Requests of many clients at once, and what came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ken_core.examples import Example
from serving.client import ApiError, AsyncClient, ClientError, Retries


@dataclass(frozen=True)
class Reply:
    """One answered (or failed) request. Times in seconds; `swap` is 0 where the task was active already."""

    task: str
    status: int
    digest: str
    right: bool
    seconds: float
    swap: float
    sent: float


async def send_all(
    url: str, requests: Sequence[tuple[str, Example]], clients: int, done: Callable[[int], None] = lambda n: None
) -> list[Reply]:
    """Send (task, example) pairs in order, at most `clients` at a time."""
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
    """Send pairs over and over until something else has finished."""
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
    """A client that hides no failure behind a second attempt."""
    return AsyncClient(url, retries=Retries(attempts=1))


async def ask(client: AsyncClient, task: str, example: Example) -> Reply:
    """Send one text to one task; the reply's status is 0 where no answer came."""
    sent = time.perf_counter()
    try:
        answer = await client.predict(task, example.text, parameters={"top_k": 1})
    except ClientError as error:
        status = error.status if isinstance(error, ApiError) else 0
        return Reply(task, status, "", False, time.perf_counter() - sent, 0.0, sent)
    seconds = time.perf_counter() - sent
    right = answer.outputs[0][0]["label"] == example.label
    return Reply(task, 200, answer.digest, right, seconds, answer.timing.get("swap", 0.0), sent)

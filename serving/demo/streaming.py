"""Clients that ask language tasks at the same time, and read the answers as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from serving.client import AsyncClient

_MOST_TOKENS = 40


@dataclass(frozen=True)
class Question:
    """What a client asks which task."""

    task: str
    text: str


@dataclass(frozen=True)
class Streamed:
    """A question with its answer.

    Attributes:
        digest: of the delta that answered.
        tokens: that were generated.
        first: seconds from sending to the first text.
        gaps: seconds between one part of the text and the next.
    """

    question: Question
    answer: str
    digest: str
    tokens: int
    first: float
    gaps: Sequence[float]


async def ask_all(
    url: str, questions: Sequence[Question], clients: int, done: Callable[[int], None] = lambda n: None
) -> list[Streamed]:
    """Ask questions in order, at most `clients` at a time. `done` is called with the number of answers."""
    waiting = iter(questions)
    answers: list[Streamed] = []
    async with AsyncClient(url, timeout=600.0) as client:

        async def work() -> None:
            for question in waiting:
                answers.append(await _ask(client, question))
                done(len(answers))

        await asyncio.gather(*(work() for _ in range(clients)))
    return answers


async def _ask(client: AsyncClient, question: Question) -> Streamed:
    prompt = [{"role": "user", "content": question.text}]
    parameters = {"max_tokens": _MOST_TOKENS, "temperature": 0}
    sent, came, parts = time.perf_counter(), list[float](), list[str]()
    stream = client.stream(question.task, prompt, parameters=parameters)
    async with stream:
        async for piece in stream:
            if piece.text:
                came.append(time.perf_counter())
                parts.append(piece.text)
    gaps = [after - before for before, after in pairwise(came)]
    first = came[0] - sent if came else time.perf_counter() - sent
    return Streamed(question, "".join(parts), stream.end.digest, stream.end.usage.generated_tokens, first, gaps)

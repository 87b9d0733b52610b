"""A replica in this process, without HTTP and Ray: the right answers to compare with, and how long they take."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvloop

from serving.config import load_settings
from serving.service import Service

_TIMEOUT = 120.0
TOLERANCE = 1e-4
"""The largest difference allowed between two scores of the same text: batches of other shapes round differently."""


class InProcess:
    """Asks a `Service` directly.

    Args:
        digests: the digest of each task, in the order of the tasks' numbers.
        texts: all texts, in the order of their numbers.
    """

    def __init__(self, service: Service, digests: Sequence[str], texts: Sequence[str]) -> None:
        self._service = service
        self._digests = digests
        self._texts = texts
        self._known: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def seconds(self, task: int, texts: Iterable[int], seconds: float) -> list[float]:
        """How long single texts take, in seconds each; they are asked one after another for `seconds` seconds."""
        return uvloop.run(self._time(task, itertools.cycle(texts), seconds))

    def disagrees(self, task: int, text: int, answer: tuple[str, float]) -> str | None:
        """How an answer differs from this replica's, None if it does not; `look_up` must have answered the pair."""
        best, second = self._known[task, text]
        label, score = answer
        if abs(score - best["score"]) > TOLERANCE:
            return f"task {task} scored {score} where {best['score']} was expected: {self._texts[text]!r}"
        if label != best["label"] and best["score"] - second["score"] > TOLERANCE:
            return f"task {task} said {label} where {best['label']} was expected: {self._texts[text]!r}"
        return None

    def look_up(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Answer those (task, text) pairs whose answers are not known yet."""
        missing: defaultdict[int, list[int]] = defaultdict(list)
        for task, text in pairs:
            if (task, text) not in self._known:
                missing[task].append(text)
        uvloop.run(self._answer(missing))

    async def _answer(self, wanted: Mapping[int, Sequence[int]]) -> None:
        for task, texts in wanted.items():
            inputs = [self._texts[i] for i in texts]
            answer = await self._service.predict(self._digests[task], inputs, {"top_k": 2}, _TIMEOUT)
            self._known |= {(task, i): found for i, found in zip(texts, answer.outputs, strict=True)}

    async def _time(self, task: int, texts: Iterator[int], seconds: float) -> list[float]:
        times = []
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            text = self._texts[next(texts)]
            await self._service.predict(self._digests[task], [text], {"top_k": 1}, _TIMEOUT)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(0)
        return times


@contextmanager
def in_process(
    settings: Mapping[str, str], url: str, digests: Sequence[str], texts: Sequence[str]
) -> Iterator[InProcess]:
    """A replica in this process, for as long as the block runs."""
    service = Service(load_settings(**settings), url)
    service.start()
    try:
        yield InProcess(service, digests, texts)
    finally:
        service.stop()

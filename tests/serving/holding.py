"""Hold an engine still for a while, and wait for what other threads bring about."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from serving.engine.engine import Engine
from serving.replica import inference


class Blocked:
    """Within it, the engine runs no batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._go = engine, threading.Event()

    def __enter__(self) -> None:
        entered = threading.Event()
        self._engine.call(lambda: (entered.set(), self._go.wait(20)))
        assert entered.wait(20)

    def __exit__(self, *_: object) -> None:
        self._go.set()


@contextmanager
def deadlines_held() -> Iterator[Callable[[], None]]:
    """Within it, no prediction is ended by its deadline before the test calls what is yielded."""
    held: list[tuple[asyncio.Timeout, float]] = []

    def timeout_at(when: float) -> asyncio.Timeout:
        held.append((asyncio.timeout(None), when))
        return held[-1][0]

    def let() -> None:
        for limit, when in held:
            limit.reschedule(when)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "asyncio", SimpleNamespace(**{**vars(asyncio), "timeout_at": timeout_at}))
        yield let


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.002)

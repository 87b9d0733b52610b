"""Hold an engine still for a while, and wait for what other threads bring about."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from serving.engine.engine import Engine


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


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.002)

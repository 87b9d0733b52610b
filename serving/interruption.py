"""Signals that end a command, Ctrl-C above all, also where Python drops what their handlers raise.

A handler raises wherever the program happens to be. In finalizers and in callbacks of weak references Python drops the
exception, and the program goes on. So long work asks now and then whether a signal came.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)
_Handler = Callable[[int, FrameType | None], object]


@contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """Remember signals within it. Yields a check that runs the handler of one that came once more.

    Handlers stay what they were, and are put back at the end. Other threads than the main one remember nothing.
    """
    came: list[Callable[[], object]] = []

    def remembering(handler: _Handler, number: int, frame: FrameType | None) -> None:
        came.append(partial(handler, number, None))
        handler(number, frame)

    def check() -> None:
        if came:
            came[0]()

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in _ENDING if here}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, partial(remembering, handler))
    try:
        yield check
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)

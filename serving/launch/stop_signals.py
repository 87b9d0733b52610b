"""Turns SIGTERM and SIGINT into a flag, so that a server stops in order."""

from __future__ import annotations

import signal


class StoppedError(BaseException):
    """A signal came before the server was ready."""


class StopFlag:
    """Set by SIGTERM and SIGINT. The first signal also raises `StoppedError` if the server is not ready yet.

    Attributes:
        asked: whether a signal came.
        ready: whether the server has started; to be set by whoever starts it.
    """

    def __init__(self) -> None:
        self.asked = False
        self.ready = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: object) -> None:
        first, self.asked = not self.asked, True
        if first and not self.ready:
            raise StoppedError

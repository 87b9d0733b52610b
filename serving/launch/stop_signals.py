"""SIGTERM and SIGINT as a flag that the driver of the cluster looks at."""

from __future__ import annotations

import signal


class StoppedError(BaseException):
    """A signal came before the server was ready."""


class StopFlag:
    """Signals set a flag once the server is ready, and interrupt its start before."""

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

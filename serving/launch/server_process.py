"""``ken serve`` as a child process, for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Self

import httpx

from serving.errors import StartError
from serving.launch.ports import free_port

_READY_SECONDS = 120.0
_STOP_SECONDS = 90.0


class ServerProcess:
    """A server that is ready inside its ``with`` block and has ended after it.

    Args:
        settings: the server's settings: environment variables ``KEN_*`` by their names without the prefix. The server
            does not get this process's variables ``KEN_*`` and ``RAY_*``.
        log: file to append the server's output to; None for this process's stderr.
        port: None for a free one.
        module: the module to run as the command line.
    """

    def __init__(
        self,
        settings: dict[str, str],
        log: Path | None = None,
        port: int | None = None,
        module: str = "serving.cli",
    ) -> None:
        self._module = module
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(("KEN_", "RAY_"))}
        self._environment |= {f"KEN_{name.upper()}": value for name, value in settings.items()}

    def __enter__(self) -> Self:
        self.start()
        try:
            self.await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server in a session of its own, so that a Ctrl-C at the terminal does not reach it."""
        command = [sys.executable, "-m", self._module, "serve", "--port", str(self.port)]
        with self._output() as output:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )

    def await_ready(self) -> None:
        """Wait until the server is ready.

        Raises:
            StartError: the server ended, or is not ready after two minutes. The message has the end of the log.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StartError(f"the server ended with exit code {self.process.returncode}{self._tail()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise StartError(f"the server was not ready after {_READY_SECONDS:g} s{self._tail()}")

    def stop(self) -> int:
        """Send SIGTERM and return the exit code. Send SIGKILL if the server takes longer than a drain may take."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _output(self) -> IO[bytes]:
        return self.log.open("ab") if self.log else os.fdopen(os.dup(2), "ab")

    def _tail(self) -> str:
        return ":\n" + self.log.read_text(errors="replace")[-2000:] if self.log and self.log.exists() else ""

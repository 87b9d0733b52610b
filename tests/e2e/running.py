"""A real ``ken serve`` in a process of its own, and what is left of it when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx
import psutil

_READY_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`with Server(...) as server:` is ready inside, and told to stop at the end if it still runs."""

    def __init__(self, base: Path, data_dir: Path, redis_url: str | None, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("KEN_", "RAY_"))},
            "KEN_BASE": str(base),
            "KEN_DATA_DIR": str(data_dir),
            "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(data_dir / "numba")),
            **({"KEN_REDIS_URL": redis_url} if redis_url else {}),
            **environment,
        }

    def __enter__(self) -> Self:
        self.start()
        self.await_ready()
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def start(self) -> None:
        command = [sys.executable, "-m", "serving.cli", "serve", "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def await_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server was not ready in time:\n{self.log.read_text()}")

    def processes(self) -> list[psutil.Process]:
        """Everything that descends from the server."""
        return psutil.Process(self.process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that are not gone a moment later."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    return [" ".join(p.cmdline()) for p in alive if p.status() != psutil.STATUS_ZOMBIE]

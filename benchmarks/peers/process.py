"""A server as a child process: started, waited for, measured, told to stop."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

from serving.launch.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 60.0


class PeerError(Exception):
    """A peer could not be installed or started; the other comparisons go on without it."""


class Server:
    """Ready inside its ``with`` block, gone after it.

    Args:
        command: the part ``{port}`` is replaced by a free port.
        environment: added to this process's, less what would change how a server runs; ``{port}`` as above.
        ready: the path that answers 200 once requests may come.
        log: where its output goes.
        seconds: how long its start may take.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], ready: str, log: Path, seconds: float = 120.0
    ) -> None:
        self.port = free_port()
        port = {"{port}": str(self.port)}
        self._command = [port.get(part, part) for part in command]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("KEN_", "RAY_", "INFINITY_"))}
        self._environment = {**kept, "PYTHONPATH": str(ROOT), **{k: port.get(v, v) for k, v in environment.items()}}
        self._ready = ready
        self._log = log
        self._seconds = seconds

    def __enter__(self) -> Self:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        tree = self._tree()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(tree, timeout=3)
        for process in alive:
            process.kill()

    def memory(self) -> int:
        """Bytes of the whole process tree; pages shared by n processes count as an nth in each (PSS)."""
        return sum(_memory(process, "pss") for process in self._tree())

    def unshared(self) -> int:
        """Bytes that no process outside the tree shares, as one sees it who adds another such tree (USS)."""
        return sum(_memory(process, "uss") for process in self._tree())

    def get(self, path: str) -> str:
        """The body of a GET."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30).raise_for_status().text

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _await_ready(self) -> None:
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise PeerError(f"it ended with exit code {self._process.returncode}:\n{self._tail()}")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}{self._ready}", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise PeerError(f"it was not ready after {self._seconds:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


def _memory(process: psutil.Process, kind: str) -> int:
    try:
        return int(getattr(process.memory_full_info(), kind))
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0

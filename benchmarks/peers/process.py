"""A server in a child process: starting it, waiting until it is ready, measuring its memory, stopping it."""

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
    """A child process that is ready inside its ``with`` block and gone after it.

    Args:
        command: the command; an argument ``{port}`` is replaced by a free port.
        environment: added to this process's environment, from which variables that would change how a server runs are
            removed; a value ``{port}`` is replaced by the same port.
        ready: the path that answers 200 once requests may come.
        log: the file for the server's output.
        seconds: how long the start may take.
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
        """Memory of the whole process tree in bytes; a page shared by n processes counts as an nth in each (PSS)."""
        return sum(_memory(process, "pss") for process in self._tree())

    def unshared(self) -> int:
        """Memory in bytes that no other process shares: what another such process tree would add (USS)."""
        return sum(_memory(process, "uss") for process in self._tree())

    def processor_seconds(self, program: str) -> float:
        """Processor time so far of those processes of the server that run a program."""
        return sum(_processor_seconds(process, program) for process in self._tree())

    def get(self, path: str) -> str:
        """The body of the answer to a GET request."""
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
                raise PeerError(f"the server ended with exit code {self._process.returncode}:\n{self._tail()}")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}{self._ready}", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
        raise PeerError(f"the server was not ready after {self._seconds:g} s:\n{self._tail()}")

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]


def _memory(process: psutil.Process, kind: str) -> int:
    try:
        return int(getattr(process.memory_full_info(), kind))
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def _processor_seconds(process: psutil.Process, program: str) -> float:
    try:
        return sum(process.cpu_times()[:2]) if process.name() == program else 0.0
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0.0

"""Starts servers for the tests, and finds processes that are left after a server ended."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from serving.launch.server_process import ServerProcess


def server_on(base: Path, data_dir: Path, redis_url: str, log: Path) -> ServerProcess:
    """A server on a free port. It uses the kernels that were compiled for earlier servers."""
    return ServerProcess(settings_on(base, data_dir, redis_url), log)


def settings_on(base: Path, data_dir: Path, redis_url: str) -> dict[str, str]:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "numba"))
    return {"base": str(base), "data_dir": str(data_dir), "redis_url": redis_url, "threads": "2"}


def processes_of(server: ServerProcess) -> list[psutil.Process]:
    """All descendants of the server's process."""
    return psutil.Process(server.process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[str]:
    """The command lines of the processes that have not ended after a moment."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    return [" ".join(p.cmdline()) for p in alive if p.status() != psutil.STATUS_ZOMBIE]

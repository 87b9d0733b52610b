"""A server for the tests, and what is left of it when it ends."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from serving.launch.server_process import ServerProcess


def server_on(base: Path, data_dir: Path, redis_url: str, log: Path) -> ServerProcess:
    """A server on a free port; the kernels compiled for earlier ones are used again."""
    return ServerProcess(settings_on(base, data_dir, redis_url), log)


def settings_on(base: Path, data_dir: Path, redis_url: str) -> dict[str, str]:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "numba"))
    return {"base": str(base), "data_dir": str(data_dir), "redis_url": redis_url, "threads": "2"}


def processes_of(server: ServerProcess) -> list[psutil.Process]:
    """Everything that descends from the server."""
    return psutil.Process(server.process.pid).children(recursive=True)


def still_running(processes: list[psutil.Process]) -> list[str]:
    """Command lines of those that are not gone a moment later."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    return [" ".join(p.cmdline()) for p in alive if p.status() != psutil.STATUS_ZOMBIE]

"""Ray's own processes of a private cluster, without which no replica can be started or stopped."""

from __future__ import annotations

import psutil

_NEEDED = ("raylet", "gcs_server")


class Daemons:
    """The needed daemons among the children of this process, which started the cluster."""

    def __init__(self) -> None:
        self._all = {p.name(): p for p in psutil.Process().children() if p.name() in _NEEDED}

    def ended(self) -> str | None:
        """The name of one that has ended; None while all run."""
        return next((name for name, process in self._all.items() if not _runs(process)), None)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

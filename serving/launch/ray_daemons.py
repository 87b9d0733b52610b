"""Ray's own processes of a private cluster, without which no replica can be started or stopped."""

from __future__ import annotations

import psutil

from serving.launch.process_ties import reap_orphans

_NEEDED = ("raylet", "gcs_server")


class Daemons:
    """The needed daemons among the children of this process, which started the cluster."""

    def __init__(self) -> None:
        children = psutil.Process().children()
        self._pids = {process.pid for process in children}
        self._needed = {process.name(): process for process in children if process.name() in _NEEDED}

    def ended(self) -> str | None:
        """The name of one that has ended; None while all run. Forgets orphans of the cluster that have ended."""
        reap_orphans(self._pids)
        return next((name for name, process in self._needed.items() if not _runs(process)), None)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

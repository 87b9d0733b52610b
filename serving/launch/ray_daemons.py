"""Ray's own processes of a private cluster, without which no replica can be started or stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, main_thread

import psutil

from serving.errors import StartError
from serving.launch.process_ties import reap_orphans
from serving.launch.stop_signals import StoppedError

_NEEDED = ("gcs_server", "raylet")
_LOOK_SECONDS = 0.1


class Daemons:
    """The needed daemons among the children of this process, which has just started the cluster.

    Raises:
        StartError: one of them is not there.
    """

    def __init__(self) -> None:
        children = psutil.Process().children()
        self._pids = {process.pid for process in children}
        self._needed = {process.name(): process for process in children if process.name() in _NEEDED}
        if missing := [name for name in _NEEDED if name not in self._needed]:
            raise StartError(
                f"found no {' and no '.join(missing)} among the processes that Ray started; start again, with more "
                "memory if the machine has little, and with the version of ray in constraints.txt"
            )

    def ended(self) -> str | None:
        """The name of one that has ended; None while all run. Forgets orphans of the cluster that have ended."""
        reap_orphans(self._pids)
        return next((name for name, process in self._needed.items() if not _runs(process)), None)

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Interrupts the block, in the main thread, when a daemon ends. Ray's own calls may then wait without end.

        Raises:
            StartError: a daemon has ended.
        """
        over = Event()

        def watch() -> None:
            while not over.wait(_LOOK_SECONDS):
                if self.ended() is not None:
                    signal.pthread_kill(main_thread().ident or 0, signal.SIGUSR1)
                    return

        before = signal.signal(signal.SIGUSR1, _interrupt)
        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            over.set()
            watcher.join()
        except (StoppedError, Exception) as error:
            if (ended := self.ended()) is None:
                raise
            raise StartError(f"{ended}, a process of Ray's, has ended") from error
        finally:
            over.set()
            watcher.join()
            signal.signal(signal.SIGUSR1, before)


def _interrupt(number: int, frame: object) -> None:
    raise StoppedError


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

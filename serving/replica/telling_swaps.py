"""The thread that tells the store which tasks a replica's weights changed to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from serving.errors import StoreError
from serving.store import Store, Table
from serving.store.swaps import NamedSwap
from serving.tasks import TaskTable
from serving.telemetry.swap_log import Swap, SwapLog

_EVERY_SECONDS = 0.5
"""With what `SwapLog` keeps: at most 20 changes a second, in two entries."""
_OTHER = "@other"


class TellingSwaps:
    """Empties a `SwapLog` into the store. Changes that the store does not take are forgotten: they are only shown."""

    def __init__(self, log: SwapLog, store: Store, table: TaskTable, replica: str) -> None:
        self._log = log
        self._store = store
        self._table = table
        self._replica = replica
        self._named: tuple[Table | None, Mapping[str, str]] = (None, {})
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ken-swaps", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_SECONDS):
            swaps, skipped = self._log.fetch()
            if swaps:
                with suppress(StoreError):
                    self._store.swaps.add(self._replica, [self._with_names(swap) for swap in swaps], skipped)

    def _with_names(self, swap: Swap) -> NamedSwap:
        return NamedSwap(self._name(swap.left), self._name(swap.entered), round(swap.seconds, 6), round(swap.at, 3))

    def _name(self, digest: str | None) -> str | None:
        return None if digest is None else self._names().get(digest, _OTHER)

    def _names(self) -> Mapping[str, str]:
        """The task of each version. Of two tasks with one delta, either may be named."""
        table = self._table.current
        if self._named[0] is not table:
            names = {digest: name for name, task in table.tasks.items() for digest in task.versions}
            self._named = table, names
        return self._named[1]

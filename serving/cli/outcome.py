"""What a change did, and whether every replica has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from serving.terminal import counted, say

if TYPE_CHECKING:
    from serving.cli.backend import Backend
    from serving.client import Change, HistoryEntry, NewKey


def recorded(backend: Backend, task: str, change: Change, action: str | None = None) -> HistoryEntry:
    """The entry that a change left in its task's history, which is current even where a replica's table is behind.

    Args:
        action: the action of the entry to find, for a change that leaves several entries.

    Raises:
        UnavailableError: the task was changed so often since then that the entry is not among the newest ones.
    """
    from serving.errors import UnavailableError

    made = (entry for entry in backend.history(task) if entry.revision == change.revision)
    found = next((entry for entry in made if action in (None, entry.action)), None)
    if found is None:
        raise UnavailableError(
            f"the change was made (revision {change.revision}), but {task} was changed so often since then that the "
            "change is not among the newest entries of its history"
        )
    return found


def tell_pending(change: Change | NewKey, wait: float | None) -> None:
    """Say how many replicas have seen a change, if the command waited for that.

    Args:
        wait: seconds that the command waited; None if it did not wait.

    Raises:
        UnavailableError: some replicas have not seen the change; the message names them.
    """
    if wait is None:
        return
    from serving.errors import UnavailableError

    if change.pending:
        behind = ", ".join(map(partial(_behind, change.silent), change.pending))
        of = counted(len(change.seen) + len(change.pending), "replica")
        raise UnavailableError(
            f"the change was made, but after {wait:g} s only {len(change.seen)} of {of} answer by it; "
            f"not known to: {behind}"
        )
    say(f"seen by {_all(len(change.seen))}")


def _behind(silent: Mapping[str, float], replica: str) -> str:
    return f"{replica} (silent for {silent[replica]:.0f} s)" if replica in silent else replica


def _all(count: int) -> str:
    return {0: "no replica, for none is running", 1: "the one replica"}.get(count, f"all {count} replicas")

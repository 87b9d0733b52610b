"""What a change did, and whether every replica has seen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.terminal import say

if TYPE_CHECKING:
    from serving.cli.backend import Backend
    from serving.client import Change, HistoryEntry, NewKey


def recorded(backend: Backend, task: str, change: Change, action: str | None = None) -> HistoryEntry:
    """What a change did, from the history, which unlike a replica's table is never behind.

    Args:
        action: which entry, where the change made several.

    Raises:
        UnavailableError: others changed the task so often meanwhile that it is not among the newest.
    """
    from serving.errors import UnavailableError

    made = (entry for entry in backend.history(task) if entry.revision == change.revision)
    found = next((entry for entry in made if action in (None, entry.action)), None)
    if found is None:
        raise UnavailableError(f"the change was made (revision {change.revision}), but {task} was changed much since")
    return found


def tell_pending(change: Change | NewKey, wait: float | None) -> None:
    """Say whether every replica has seen a change that was waited for.

    Raises:
        UnavailableError: some have not; the message names them.
    """
    if wait is None:
        return
    from serving.errors import UnavailableError

    if change.pending:
        behind = ", ".join(change.pending)
        raise UnavailableError(f"after {wait:g} s these replicas have not seen the change: {behind}")
    say("seen by every replica")

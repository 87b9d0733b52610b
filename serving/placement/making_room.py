"""Tasks leave replicas that have no room for them, where another replica has."""

from __future__ import annotations

from serving.placement.damping import Damping
from serving.placement.ledger import Ledger, Replica


def make_room(ledger: Ledger, damping: Damping) -> bool:
    """Move the tasks asked for least from replicas whose homes take more bytes than there are.

    Returns whether anything moved. What no other replica has room for stays.
    """
    leaving = [(task, home) for home in ledger.full() for task in ledger.at(home)]
    leaving.sort(key=lambda one: (ledger.rate(one[0]), one))
    moved = False
    for task, home in leaving:
        if not damping:
            break
        if ledger.lacks_room(task, home):
            moved |= _leave(ledger, task, home, damping)
    return moved


def _leave(ledger: Ledger, task: str, home: Replica, damping: Damping) -> bool:
    if ledger.nbytes(task) == 0:
        return False
    receiver = ledger.least_loaded(ledger.possible(task))
    if receiver is None:
        return False
    ledger.settle(task, [receiver if one == home else one for one in ledger.homes[task]])
    damping.note(receiver, ledger.part(task))
    return True

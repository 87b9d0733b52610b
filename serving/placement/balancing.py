"""Tasks get other homes where replicas have too much or too little load: few of them, and none without need.

Each move takes less load from a replica than what it has more than the one that gets it, and a task never gets fewer
homes here. So moves come to an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serving.placement.damping import Damping
from serving.placement.home_count import LEAST
from serving.placement.ledger import NOISE, Ledger, Replica

MOST, LEAST_LOAD = 1.2, 0.75
"""Load in shares of a replica. Nothing moves while all replicas are between these."""
HIGH, LOW = 1.1, 0.9
"""If something moves, all should be between these."""
BETTER = 0.02
"""Shares of a replica by which a move must lower the larger of two loads."""
RECEIVERS = 8
"""Replicas that are tried, beginning with the least loaded."""


def balance(ledger: Ledger, seconds: Mapping[str, Replica], damping: Damping) -> bool:
    """Move tasks until loads are even, as far as the damping allows. Returns whether anything moved.

    Args:
        seconds: the second homes that tasks have. They have the task already, so they are preferred as homes.
    """
    if ledger.load.max() <= ledger.above(MOST) and ledger.load.min() >= ledger.below(LEAST_LOAD):
        return False
    stuck: set[Replica] = set()
    moved = False
    while damping and (giver := _giver(ledger, stuck, damping)) is not None:
        if _relieve(ledger, giver, seconds, damping):
            moved = True
        else:
            stuck.add(giver)
    return moved


def _giver(ledger: Ledger, stuck: set[Replica], damping: Damping) -> Replica | None:
    """The replica with the most load, unless all loads are even or can become no more so."""
    givers = [i for i in range(len(ledger.names)) if i not in stuck]
    if not givers:
        return None
    giver = max(givers, key=lambda i: ledger.load[i])
    hungry = any(damping.may_get(i) for i in (ledger.load < ledger.below(LOW)).nonzero()[0].tolist())
    return giver if hungry or ledger.load[giver] > ledger.above(HIGH) else None


def _relieve(ledger: Ledger, giver: Replica, seconds: Mapping[str, Replica], damping: Damping) -> bool:
    """Take a task from a replica, or a part of one. Returns whether there was one to take."""
    high = ledger.load[giver] > ledger.above(HIGH)
    wanted = float(ledger.load[giver]) - (1.0 if high else LOW) * ledger.mean
    if wanted <= 0:
        return False
    by_load = ledger.load.argsort(kind="stable").tolist()
    receivers = [i for i in by_load if i != giver and damping.may_get(i)][:RECEIVERS]
    if high and _move(ledger, giver, _to_seconds(ledger, giver, wanted, seconds), wanted, damping):
        return True
    for receiver in receivers:
        lacking = ledger.mean - float(ledger.load[receiver])
        aim = min(wanted, lacking) if lacking > 0 else wanted
        if _move(ledger, giver, ((task, receiver) for task in ledger.at(giver)), aim, damping):
            return True
    return ledger.load[giver] > ledger.above(MOST) and _share(ledger, giver, receivers, damping)


def _to_seconds(
    ledger: Ledger, giver: Replica, wanted: float, seconds: Mapping[str, Replica]
) -> Iterator[tuple[str, Replica]]:
    """The tasks of a replica that would make a difference, with second homes that have little load."""
    for task in ledger.at(giver):
        second, part = seconds.get(task), ledger.part(task)
        if second is not None and part >= wanted / 4 and ledger.load[second] + part <= ledger.mean:
            yield task, second


def _move(
    ledger: Ledger, giver: Replica, candidates: Iterator[tuple[str, Replica]], wanted: float, damping: Damping
) -> bool:
    """Move the task whose load is nearest to what is wanted, of those that may move."""
    best = min(
        (
            (abs(ledger.part(task) - wanted), task, to)
            for task, to in candidates
            if _helps(ledger, giver, task, to) and damping.may_get(to, ledger.part(task))
        ),
        default=None,
    )
    if best is None:
        return False
    _, task, receiver = best
    part = ledger.part(task)
    ledger.settle(task, [receiver if home == giver else home for home in ledger.homes[task]])
    damping.note(receiver, part)
    return True


def _helps(ledger: Ledger, giver: Replica, task: str, receiver: Replica) -> bool:
    """Whether two loads become more even by a move that is possible."""
    part = ledger.part(task)
    most = float(ledger.load[giver] - ledger.load[receiver]) - BETTER * max(ledger.mean, NOISE)
    return 0 < part < most and receiver not in ledger.homes[task] and ledger.fits(task, receiver)


def _share(ledger: Ledger, giver: Replica, receivers: list[Replica], damping: Damping) -> bool:
    """Give a task that is too heavy to be moved whole one home more: the one that relieves the replica most."""
    heavy = [task for task in ledger.at(giver) if ledger.part(task) > LEAST * max(ledger.mean, NOISE)]
    for task in sorted(heavy, key=lambda task: (-ledger.part(task) / (len(ledger.homes[task]) + 1), task)):
        homes = ledger.homes[task]
        part = ledger.rate(task) / (len(homes) + 1)
        most = ledger.load[giver] - BETTER * ledger.mean - part
        for receiver in receivers:
            takes = ledger.load[receiver] < most or _passes_on(ledger, receiver)
            if takes and receiver not in homes and ledger.fits(task, receiver):
                ledger.settle(task, [*homes, receiver])
                damping.note(receiver, part)
                return True
    return False


def _passes_on(ledger: Ledger, receiver: Replica) -> bool:
    """Whether a replica has only light tasks, which it can pass on if it gets a heavy one."""
    return all(ledger.part(task) <= LEAST * ledger.mean for task in ledger.at(receiver))

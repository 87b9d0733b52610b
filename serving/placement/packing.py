"""Tasks packed over replicas: by load, by bytes, and with few moves from where they are."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace

from serving.placement.balancing import MOST, balance
from serving.placement.damping import GAIN as DAMPED
from serving.placement.damping import Damping
from serving.placement.home_count import home_count
from serving.placement.ledger import NOISE, Demand, Ledger, Replica, Room
from serving.placement.making_room import make_room
from serving.placement.plan import Homes, Placement
from serving.placement.second_homes import second_homes

__all__ = ["Demand", "Room", "place"]

ROUNDS = 4
"""What makes room may make loads uneven, and the other way round."""


def place(before: Placement | None, tasks: Mapping[str, Demand], replicas: Mapping[str, Room]) -> Placement:
    """The homes of tasks, made from those that they have.

    Every task gets a home. What takes more bytes than there is room for is placed beyond it, the tasks asked for least
    first. At once get homes: tasks that have none, tasks whose home is lost, and tasks that became too much for their
    homes. All other changes wait for need and are damped (`damping`), unless no task had any load before.

    Args:
        before: the placement in force; None for the first one.
        tasks: all tasks, by name.
        replicas: those that are there, by name.

    Returns:
        A placement of a higher epoch, if a home, a second home or the replicas are others than before; else one of the
        same epoch, with the rates of now. So the epoch tells whether there is anything to write.

    Raises:
        ValueError: there is no replica.
    """
    if not replicas:
        raise ValueError("found no replica to place tasks on, expected at least one")
    ledger = Ledger(tasks, replicas)
    had = {} if before is None else before.tasks
    knew = _knew_loads(before)
    damping = Damping(len(tasks), DAMPED * ledger.mean if knew else math.inf)
    seconds = _seconds(ledger, had)
    same = before is not None and before.replicas == ledger.names
    if knew or (same and ledger.mean <= NOISE):
        _keep(ledger, had)
    elif same:  # what is asked for finds homes by its load, which is better than moves from where chance put it
        _keep(ledger, {task: homes for task, homes in had.items() if task in tasks and not tasks[task].rate})
    _fill(ledger, seconds)
    for _ in range(ROUNDS):
        made = make_room(ledger, damping)
        if not balance(ledger, seconds, damping) and not made:
            break
    found = second_homes(ledger, seconds, _left(ledger, had))
    return _placement(before or Placement(), ledger, found)


def _knew_loads(before: Placement | None) -> bool:
    """Whether a placement was made by loads. One that was not is no reason to wait: tasks are where chance put them."""
    return before is not None and sum(homes.rate for homes in before.tasks.values()) > NOISE * len(before.replicas)


def _seconds(ledger: Ledger, had: Mapping[str, Homes]) -> dict[str, Replica]:
    """The second homes of before, as far as they are still there."""
    found = {task: ledger.position.get(homes.second or "") for task, homes in had.items() if task in ledger.homes}
    return {task: second for task, second in found.items() if second is not None}


def _keep(ledger: Ledger, had: Mapping[str, Homes]) -> None:
    """Give tasks the homes of before, as far as they are still there."""
    for task, homes in had.items():
        if task in ledger.homes:
            there = [ledger.position[home] for home in homes.homes if home in ledger.position]
            ledger.settle(task, there)


def _fill(ledger: Ledger, seconds: Mapping[str, Replica]) -> None:
    """Give each task as many homes as its load needs, those asked for most first."""
    share = max(ledger.mean, NOISE)
    for task in ledger.tasks:
        homes = ledger.homes[task]
        wanted = home_count(ledger.rate(task), share, len(homes), len(ledger.names))
        if len(homes) > wanted:
            least = sorted(homes, key=lambda home: (ledger.load[home], home))[:wanted]
            ledger.settle(task, [home for home in homes if home in least])
        elif len(homes) < wanted:
            _add_homes(ledger, task, wanted, seconds.get(task))


def _add_homes(ledger: Ledger, task: str, wanted: int, second: Replica | None) -> None:
    kept = ledger.homes[task]
    ledger.settle(task, ())
    part = ledger.rate(task) / wanted
    homes = list(kept)
    while len(homes) < wanted:
        homes.append(_home(ledger, task, part, homes, second))
    ledger.settle(task, homes)


def _home(ledger: Ledger, task: str, part: float, homes: list[Replica], second: Replica | None) -> Replica:
    """One more home for a task: its second home, the first of its order by rendezvous, or where there is least load."""
    possible = ledger.has_room(task)
    possible[homes] = False
    if second is not None and possible[second] and ledger.load[second] + part <= ledger.above(MOST):
        return second
    order = [home for home in ledger.by_rendezvous(task) if home not in homes]
    if part == 0 or not possible.any():
        return next((home for home in order if possible[home]), order[0])
    if possible[order[0]] and ledger.load[order[0]] + part <= ledger.mean:
        return order[0]
    least = ledger.least_loaded(possible)
    assert least is not None
    return least


def _left(ledger: Ledger, had: Mapping[str, Homes]) -> dict[str, Replica]:
    """The home that each task left, where it is still held: the best second home."""
    found = {}
    for task, homes in had.items():
        now = ledger.homes.get(task, ())
        there = [ledger.position[home] for home in homes.homes if home in ledger.position]
        left = [home for home in there if home not in now]
        if left and now and not set(now) <= set(there):
            found[task] = left[0]
    return found


def _placement(before: Placement, ledger: Ledger, seconds: Mapping[str, Replica]) -> Placement:
    epoch = before.epoch + 1
    tasks, moves = {}, before.moves
    for task in ledger.homes:
        homes = tuple(ledger.names[home] for home in ledger.homes[task])
        second = None if task not in seconds else ledger.names[seconds[task]]
        had = before.tasks.get(task)
        bucket = ledger.names[ledger.by_rendezvous(task)[0]] if had is None else None
        tasks[task] = _homes(had, homes, second, ledger.rate(task), epoch, ledger.position, bucket)
        moves += len(set(homes) - set(had.homes)) if had else 0
    if before.epoch and before.replicas == ledger.names and _places(before.tasks) == _places(tasks):
        return before if before.tasks == tasks else replace(before, tasks=tasks)
    return Placement(epoch, ledger.names, tasks, moves)


def _places(tasks: Mapping[str, Homes]) -> dict[str, tuple[tuple[str, ...], str | None]]:
    return {task: (homes.homes, homes.second) for task, homes in tasks.items()}


def _homes(
    had: Homes | None,
    homes: tuple[str, ...],
    second: str | None,
    rate: float,
    epoch: int,
    there: Container[str],
    bucket: str | None,
) -> Homes:
    """The homes of a task with the epochs of their arrival. Where every home is lost, the second home has been home.

    Args:
        bucket: of a new task, the replica that proxies asked for it so far.
    """
    lost = had is not None and not any(home in there for home in had.homes)
    arrivals = tuple(0 if home == bucket else _arrival(had, home, epoch, lost) for home in homes)
    since = max(arrivals)
    return Homes(homes, second, since, rate, () if min(arrivals) == since else arrivals)


def _arrival(had: Homes | None, home: str, epoch: int, lost: bool) -> int:
    if had is not None and home in had.homes:
        return had.arrival(home)
    return had.since if had is not None and lost and home == had.second else epoch

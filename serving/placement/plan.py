"""A placement: the home of each task among the replicas, as the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

Rank = int
"""0 for a home of a task, 1 for its second home."""


@dataclass(frozen=True)
class Homes:
    """Where one task is answered.

    Attributes:
        homes: names of replicas, at least one. More than one share the requests of a task that is too much for one.
        second: the replica that takes over what a home has too much of, and everything when a home is lost; None with
            a single replica.
        since: the epoch with which the last of the homes came that had to load the task. A second home that becomes a
            home has it already.
        rate: load a second, as `serving.placement.demand` measures it, when the placement was made.
        arrivals: the same epoch for each of `homes`; empty if it is `since` for all of them.
    """

    homes: tuple[str, ...]
    second: str | None = None
    since: int = 0
    rate: float = 0.0
    arrivals: tuple[int, ...] = ()

    def arrival(self, home: str) -> int:
        """The epoch up to which one of the homes must have loaded what is placed on it, to answer for the task."""
        return self.arrivals[self.homes.index(home)] if self.arrivals else self.since

    @property
    def everywhere(self) -> tuple[str, ...]:
        """All replicas that should hold the task: homes first."""
        return self.homes if self.second is None else (*self.homes, self.second)


@dataclass(frozen=True)
class Placement:
    """The homes of all tasks.

    Attributes:
        epoch: counts the placements of a store.
        replicas: names of the replicas that it is made for, sorted.
        tasks: the homes by the task's name.
        moves: homes that tasks got since the first placement, without those of new tasks.
    """

    epoch: int = 0
    replicas: tuple[str, ...] = ()
    tasks: Mapping[str, Homes] = field(default_factory=dict)
    moves: int = 0

    @cached_property
    def placed(self) -> Mapping[str, tuple[str, ...]]:
        """The tasks that each replica should hold, by the replica's name: those at home there first, then those that
        it is the second home of; of either, those with the highest rate first."""
        found: dict[str, list[tuple[Rank, float, str]]] = {replica: [] for replica in self.replicas}
        for task, homes in self.tasks.items():
            for replica in homes.homes:
                found.setdefault(replica, []).append((0, -homes.rate, task))
            if homes.second is not None:
                found.setdefault(homes.second, []).append((1, -homes.rate, task))
        return {replica: tuple(task for _, _, task in sorted(tasks)) for replica, tasks in found.items()}

    def rank(self, task: str, replica: str) -> Rank | None:
        """0 if the replica is a home of the task, 1 if it is its second home; None if it is neither."""
        homes = self.tasks.get(task)
        if homes is None:
            return None
        if replica in homes.homes:
            return 0
        return 1 if replica == homes.second else None

    def dumps(self) -> bytes:
        """As JSON. Replicas are written once, and by their position from then on."""
        names = sorted({*self.replicas, *(name for homes in self.tasks.values() for name in homes.everywhere)})
        position = {name: i for i, name in enumerate(names)}
        tasks = {
            task: [
                [position[name] for name in homes.homes],
                None if homes.second is None else position[homes.second],
                homes.since,
                float(f"{homes.rate:.4g}"),
                *([homes.arrivals] if homes.arrivals else []),
            ]
            for task, homes in self.tasks.items()
        }
        plain = {
            "epoch": self.epoch,
            "moves": self.moves,
            "names": names,
            "replicas": [position[name] for name in self.replicas],
            "tasks": tasks,
        }
        return orjson.dumps(plain)

    @staticmethod
    def loads(text: bytes) -> Placement:
        """The placement of `dumps`.

        Raises:
            ValueError: the text is not one.
        """
        try:
            plain: dict[str, Any] = orjson.loads(text)
            names = plain["names"]
            tasks = {
                task: Homes(
                    tuple(names[i] for i in homes),
                    None if second is None else names[second],
                    int(since),
                    float(rate),
                    tuple(int(epoch) for epochs in arrivals for epoch, _ in zip(epochs, homes, strict=True)),
                )
                for task, (homes, second, since, rate, *arrivals) in plain["tasks"].items()
            }
            return Placement(int(plain["epoch"]), tuple(names[i] for i in plain["replicas"]), tasks, plain["moves"])
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"no placement: {error!r}") from error

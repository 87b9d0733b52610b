"""A simulation of many replicas: ways to choose one for a request, on one trace, beside the server's own placement.

    python -m benchmarks.placement [--quick] [--json FILE]

Tasks are asked for by Zipf's law, and arrivals are Poisson's at 60 % of what all replicas can compute. Popularity
drifts. Every minute 1 % of all tasks exchange theirs at random. Every two minutes a task of any rank, the logarithm of
which is uniform, exchanges its popularity with one of up to four times its rank. Every five minutes a task of the less
popular half becomes one of the twenty most popular, and the other way round. After two minutes, a change is made to
63 %. Every six minutes a replica is killed, half way through five together, and comes back with an empty device after
three minutes. Balancers notice both at once; the placement is told of a loss 15 s later. A replica that is back answers
at once, except with a placement: there it loads first what is placed on it.

All ways get the same requests, replicas and devices (`benchmarks.fleet`):

- *random* and *leastconn* look at no task;
- *consistent hashing* asks the first replica on a ring, *rendezvous* the first by `serving.placement.rendezvous`;
- *bounded* asks the first replica on the ring that has less in flight than so many fair shares;
- *placement* is that of `serving.placement.packing`, made every 15 s from faded counts of requests, of a half-life of a
  minute, or of ten seconds where those certainly say more. It is enforced as in
  front of a server: a home that has not loaded what is placed on it is passed over, and one with more in flight than
  1.5 fair shares and 4 passes on to the next home, or to the second home.

*Imbalance* is the largest over the mean time that replicas computed in a window of five minutes, of those replicas that
were there all the time; the mean and the worst of all windows. Figures begin after ten minutes, when caches are full.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.fleet import SERVICE, Fleet, Routes, Rule, load_placed, play, seed
from benchmarks.report import Row, plain_table, report, with_shared_options
from serving.placement.packing import Demand, Room, place
from serving.placement.plan import Homes, Placement
from serving.placement.rendezvous import Weights

STEP = 15.0
"""Seconds between placements, and until a loss is noticed by who makes them."""
CHANGE = 120.0
"""Seconds after which a change of popularity is made to 63 %."""
HALF_LIVES = (60.0, 10.0)
"""Seconds, of a request in a measured rate and in a quick one."""
CERTAIN = 2.0
"""Deviations by which the quick rate must be above the other to count."""
WINDOW, WARM = 20, 40
"""Steps of a window of the imbalance, and before figures begin."""
NBYTES = 12_000_000
POINTS = 100
"""Points of each replica on the ring of consistent hashing."""
WAYS = (
    "random",
    "leastconn",
    "consistent hashing",
    "bounded, factor 1.25",
    "bounded, factor 2",
    "rendezvous",
    "placement",
)


@dataclass(frozen=True)
class Scale:
    """Sizes of a simulation.

    Attributes:
        slots: deltas that a device holds.
        steps: of 15 s each.
        load: share of what all replicas can compute.
        kill_every, away: steps between kills, and until a killed replica is back.
        together: replicas that are killed at once, half way through.
    """

    replicas: int = 100
    tasks: int = 10_000
    slots: int = 300
    steps: int = 360
    load: float = 0.6
    kill_every: int = 24
    away: int = 12
    together: int = 5

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.load * self.replicas / SERVICE


FULL, QUICK = Scale(), Scale(steps=60)


# The trace


class Popularity:
    """Shares of the requests by task, which drift."""

    def __init__(self, tasks: int, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        weights = 1 / np.arange(1, tasks + 1)
        self._target = self._chance.permutation(weights / weights.sum())
        self.shares = self._target.copy()

    def drift(self, step: int) -> None:
        """Go one step on."""
        if step % 4 == 0:
            for _ in range(max(1, self.shares.size // 200)):
                self._exchange(*self._chance.integers(0, self.shares.size, 2))
        if step % 8 == 0:
            rank = self._log_uniform(self.shares.size)
            self._exchange(self._ranked(rank - 1), self._ranked(rank * self._log_uniform(4) - 1))
        if step % 20 == 0:
            last = self._chance.integers(self.shares.size // 2, self.shares.size)
            self._exchange(self._ranked(int(last)), self._ranked(int(self._chance.integers(0, 20))))
        self.shares += (self._target - self.shares) * (1 - math.exp(-STEP / CHANGE))

    def _exchange(self, one: int, other: int) -> None:
        self._target[[one, other]] = self._target[[other, one]]

    def _ranked(self, rank: int) -> int:
        return int(np.argsort(-self._target, kind="stable")[min(rank, self.shares.size - 1)])

    def _log_uniform(self, most: int) -> int:
        return round(math.exp(self._chance.uniform(0, math.log(most))))


def arrivals(
    scale: Scale, shares: NDArray[np.float64], step: int
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    """Times, tasks and seconds of work of the requests of a step."""
    chance = np.random.default_rng([1, step])
    count = int(chance.poisson(scale.rate * STEP))
    times = np.sort(chance.uniform(step * STEP, (step + 1) * STEP, count))
    sums = np.cumsum(shares)
    tasks = np.minimum(np.searchsorted(sums, chance.uniform(0, sums[-1], count)), shares.size - 1).astype(np.int32)
    return times, tasks, SERVICE * (0.5 + 0.5 * chance.standard_exponential(count))


def events(scale: Scale, step: int) -> tuple[list[int], list[int]]:
    """The replicas that are killed and those that come back at the beginning of a step."""
    return _killed(scale, step), _killed(scale, step - scale.away)


def _killed(scale: Scale, step: int) -> list[int]:
    if step <= 0 or step % scale.kill_every:
        return []
    first = (step // scale.kill_every * 7) % scale.replicas
    middle = abs(step - scale.steps // 2) < scale.kill_every / 2
    return [(first + i) % scale.replicas for i in range(min(scale.together, scale.replicas // 2) if middle else 1)]


# Ways to choose


class Balancer:
    """Replicas behind a balancer of its own, for one way to choose.

    Args:
        order: replicas by task, in the order in which they are asked.
    """

    moves = 0

    def __init__(self, scale: Scale, rule: Rule, order: NDArray[np.int32], factor: float = 0.0) -> None:
        self.scale = scale
        self.fleet = Fleet(scale.replicas, scale.tasks, scale.slots)
        none = np.full((scale.tasks, 1), -1, np.int32)
        self.routes = Routes(rule, order, factor, none, none[:, 0], np.full((scale.replicas, 1), np.inf))
        self.imbalances: list[float] = []
        self._all_the_time = np.ones(scale.replicas, np.bool_)

    def change(self, step: int, lost: list[int], back: list[int]) -> None:
        """Replicas are lost and come back."""
        for replica in lost:
            self.fleet.lose(replica)
        self.fleet.up[back] = True

    def after(self, step: int) -> None:
        """Note what there is to note after a step."""
        self._all_the_time &= self.fleet.up
        if (step + 1) % WINDOW == 0:
            busy = self.fleet.busy[self._all_the_time]
            if step >= WARM:
                self.imbalances.append(float(busy.max() / busy.mean()))
            self.fleet.busy[:] = 0
            self._all_the_time = self.fleet.up.copy()
        if step + 1 == WARM:
            self.fleet.forget_figures()
        self.fleet.asked[:] = 0


class Placing(Balancer):
    """Replicas behind a balancer that follows placements, made from what was asked for."""

    def __init__(self, scale: Scale, order: NDArray[np.int32]) -> None:
        super().__init__(scale, Rule.BY_PLACEMENT, order, factor=1.5)
        self.placement: Placement | None = None
        self.seconds: list[float] = []
        self._faded = np.zeros((len(HALF_LIVES), scale.tasks))
        self._weights = np.zeros((len(HALF_LIVES), 1))
        self._known = set(range(scale.replicas))
        self._counts_from = np.full((scale.replicas, scale.tasks), np.inf)
        self._up_at: dict[int, float] = {}
        self._moves_when_warm = 0

    @property
    def moves(self) -> int:  # type: ignore[override]
        return self.placement.moves - self._moves_when_warm if self.placement else 0

    def change(self, step: int, lost: list[int], back: list[int]) -> None:
        now = step * STEP
        self._known |= set(back)
        if step:
            self._place(now)
        for replica in back:
            self._up_at.setdefault(replica, now)
        self._known -= set(lost)
        super().change(step, lost, [replica for replica in self._up_at if replica not in lost])
        self._up_at.clear()

    def after(self, step: int) -> None:
        fades = 0.5 ** (STEP / np.array(HALF_LIVES))[:, None]
        self._faded = fades * self._faded + self.fleet.asked
        self._weights = fades * self._weights + STEP
        super().after(step)
        if step + 1 == WARM and self.placement:
            self._moves_when_warm = self.placement.moves

    def _rates(self) -> NDArray[np.float64]:
        slow, quick = self._faded
        slow, quick = slow / self._weights[0], (quick - CERTAIN * np.sqrt(quick)) / self._weights[1]
        return np.maximum(slow, quick)

    def _place(self, now: float) -> None:
        rates = self._rates()
        demands = {f"{i:05}": Demand(float(rate), NBYTES) for i, rate in enumerate(rates)}
        rooms = {f"{i:03}": Room(self.scale.slots * NBYTES) for i in sorted(self._known)}
        begun = time.process_time()
        placement = place(self.placement, demands, rooms)
        self.seconds.append(time.process_time() - begun)
        changed = self.placement is None or placement.epoch != self.placement.epoch
        self.placement = placement
        if changed:
            self._follow(placement, rates, now)

    def _follow(self, placement: Placement, rates: NDArray[np.float64], now: float) -> None:
        places = [placement.tasks[f"{i:05}"] for i in range(self.scale.tasks)]
        width = max(len(each.homes) for each in places)
        homes = np.array([[*map(int, each.homes), *[-1] * (width - len(each.homes))] for each in places], np.int32)
        second = np.array([-1 if each.second is None else int(each.second) for each in places], np.int32)
        loaded = load_placed(self.fleet, now, homes, second, rates)
        for task, each in enumerate(places):
            self._count_homes(task, each, placement.epoch, loaded)
        self.routes = Routes(self.routes.rule, self.routes.order, 1.5, homes, second, self._counts_from)

    def _count_homes(self, task: int, homes: Homes, epoch: int, loaded: NDArray[np.float64]) -> None:
        before = self._counts_from[:, task].copy()
        self._counts_from[:, task] = np.inf
        for home in homes.homes:
            came = homes.arrival(home) == epoch
            known = before[int(home)] < np.inf
            self._counts_from[int(home), task] = loaded[int(home)] if came else before[int(home)] if known else 0.0


def balancers(scale: Scale) -> dict[str, Balancer]:
    """The ways to choose, in their order."""
    ring, rendezvous = ring_order(scale), rendezvous_order(scale)
    ways = (
        Balancer(scale, Rule.RANDOM, ring),
        Balancer(scale, Rule.LEAST_IN_FLIGHT, ring),
        Balancer(scale, Rule.IN_ORDER, ring),
        Balancer(scale, Rule.IN_ORDER_BOUNDED, ring, 1.25),
        Balancer(scale, Rule.IN_ORDER_BOUNDED, ring, 2.0),
        Balancer(scale, Rule.IN_ORDER, rendezvous),
        Placing(scale, rendezvous),
    )
    return dict(zip(WAYS, ways, strict=True))


def ring_order(scale: Scale) -> NDArray[np.int32]:
    """Replicas by task, as they follow the task's point on a ring of hashes."""
    points = sorted((_hash(f"{i:03}/{k}"), i) for i in range(scale.replicas) for k in range(POINTS))
    hashes = [point for point, _ in points]
    at = np.array([replica for _, replica in points])
    orders = []
    for task in range(scale.tasks):
        behind = np.roll(at, -int(np.searchsorted(hashes, _hash(f"{task:05}"))))
        _, first = np.unique(behind, return_index=True)
        orders.append(behind[np.sort(first)])
    return np.array(orders, np.int32)


def _hash(name: str) -> float:
    return int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "little")


def rendezvous_order(scale: Scale) -> NDArray[np.int32]:
    """Replicas by task, by their weight."""
    weights = Weights(f"{i:03}" for i in range(scale.replicas))
    return np.array([weights.order(f"{task:05}") for task in range(scale.tasks)], np.int32)


# The run


def simulate(scale: Scale) -> dict[str, Balancer]:
    """Send the requests of a trace to the replicas of every way to choose."""
    ways = balancers(scale)
    popularity = Popularity(scale.tasks, seed=0)
    for step in range(scale.steps):
        if step:
            popularity.drift(step)
        requests = arrivals(scale, popularity.shares, step)
        for balancer in ways.values():
            seed(step)
            balancer.change(step, *events(scale, step))
            play(balancer.fleet, balancer.routes, *requests)
            balancer.after(step)
    return ways


def figures(scale: Scale, name: str, balancer: Balancer) -> Iterator[Row]:
    """What is reported of one way to choose."""
    hours = (scale.steps - WARM) * STEP / 3600
    yield Row(f"{name}: on the device", balancer.fleet.on_device, "share")
    yield Row(f"{name}: imbalance, mean", statistics.mean(balancer.imbalances), "ratio", "mean load of a replica")
    yield Row(f"{name}: imbalance, worst", max(balancer.imbalances), "ratio", "mean load of a replica")
    yield Row(f"{name}: moves an hour", balancer.moves / hours, "1/h")
    yield Row(f"{name}: p50", 1000 * balancer.fleet.latency(0.5), "ms")
    yield Row(f"{name}: p99", 1000 * balancer.fleet.latency(0.99), "ms")
    yield Row(f"{name}: refused", balancer.fleet.refused, "share")


def bars(placing: Placing) -> list[Row]:
    """What is asked of the placement, beside what was measured."""
    balance = statistics.mean(placing.imbalances)
    return [
        Row("bar/simulated", placing.fleet.on_device, "share", None, "> 0.95"),
        Row("bar/simulated-balance", balance, "ratio", "mean load of a replica", "< 1.3"),
    ]


def tables(scale: Scale, ways: dict[str, Balancer], judged: list[Row]) -> list[Table]:
    title = f"{scale.replicas} replicas, {scale.tasks:,} tasks, {scale.steps * STEP / 3600:.1f} h, {scale.rate:,.0f}/s"
    columns = ["policy", "on the device", "imbalance", "worst", "moves/h", "p50 ms", "p99 ms", "refused"]
    table = plain_table(title, columns)
    for name, balancer in ways.items():
        table.add_row(name, *(f"{row.value:.4g}" for row in figures(scale, name, balancer)))
    bar_table = plain_table("bars", ["policy", "value", "wanted", ""])
    for row in judged:
        assert row.bar is not None
        sign, limit = row.bar.split()
        met = row.value > float(limit) if sign == ">" else row.value < float(limit)
        bar_table.add_row(row.name, f"{row.value:.3f}", row.bar, "met" if met else "missed")
    return [table, bar_table]


def main() -> None:
    options = with_shared_options(argparse.ArgumentParser(description=__doc__.split("\n")[0])).parse_args()
    scale = QUICK if options.quick else FULL
    ways = simulate(scale)
    placing = ways["placement"]
    assert isinstance(placing, Placing)
    judged = bars(placing)
    rows = [row for name, balancer in ways.items() for row in figures(scale, name, balancer)]
    rows.append(Row("placement: processor time to make one, median", 1000 * statistics.median(placing.seconds), "ms"))
    rows.append(Row("placement: processor time to make one, longest", 1000 * max(placing.seconds), "ms"))
    report("many replicas, simulated", rows + judged, options.json, tables(scale, ways, judged))


if __name__ == "__main__":
    main()

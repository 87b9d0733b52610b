"""Simulated replicas behind a balancer: where a request goes, whether its delta is on the device, how long it takes.

This is part of `benchmarks.placement`. A replica computes one request after the other. It loads deltas beside that, so
a load costs its request time but no other request. Its device keeps the deltas with the largest faded use counts, as
`serving.popularity` counts them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numba import njit
from numpy.typing import NDArray

SERVICE, LOAD = 0.010, 0.075
"""Mean seconds of a request and seconds of loading a delta: fetch, decode and attach from disk in results/cold.json."""
HALF_LIFE = 2000.0
"""Of a use, in later uses of the replica."""
QUEUE = 2048
"""Requests that a replica takes at most."""
SPARE = 4
"""Requests that a home may have in flight beyond its factor of the fair share."""
RECOUNT = 128
"""Requests after which the balancer counts anew how many are in flight."""
FINEST, STEP_OF_LATENCY, LATENCIES = 1e-3, 1.02, 700
"""Bounds of the latencies' histogram: its first in seconds, the ratio of one to the next, how many."""


class Rule(IntEnum):
    """How a balancer chooses."""

    RANDOM = 0
    LEAST_IN_FLIGHT = 1
    IN_ORDER = 2
    IN_ORDER_BOUNDED = 3
    BY_PLACEMENT = 4


class Fleet:
    """Replicas and what they did.

    Attributes:
        up: whether each replica answers.
        done: when each will have computed what it has.
        since: from when on a delta is on a device, by replica and task; infinite if it is not.
        worth: logarithm of the faded use count, comparable at all times, by replica and task.
        uses: requests of each replica.
        held: the tasks on each device; -1 for an empty slot.
        loading: requests of each replica that wait for a load. `ends` and `ends_at` are when these loads end, and
            where; `ring` is the first and the last of them.
        asked: requests by task, since this was last set to 0.
        busy: seconds computed by replica, since this was last set to 0.
        latencies: a histogram.
        counts: requests that found their delta on the device, those that did not, and those that no replica took.
    """

    def __init__(self, replicas: int, tasks: int, slots: int) -> None:
        self.replicas = replicas
        self.up = np.ones(replicas, np.bool_)
        self.done = np.zeros(replicas)
        self.since = np.full((replicas, tasks), np.inf)
        self.worth = np.full((replicas, tasks), -np.inf)
        self.uses = np.zeros(replicas)
        self.held = np.full((replicas, slots), -1, np.int32)
        self.loading = np.zeros(replicas, np.int64)
        self.ends, self.ends_at = np.zeros(1 << 16), np.zeros(1 << 16, np.int32)
        self.ring = np.zeros(2, np.int64)
        self.asked = np.zeros(tasks)
        self.busy = np.zeros(replicas)
        self.latencies = np.zeros(LATENCIES, np.int64)
        self.counts = np.zeros(3, np.int64)

    def forget_figures(self) -> None:
        """Begin to measure."""
        self.latencies[:] = 0
        self.counts[:] = 0

    def lose(self, replica: int) -> None:
        """A replica ends. What its device held is gone."""
        self.up[replica] = False
        self.since[replica] = np.inf
        self.worth[replica] = -np.inf
        self.held[replica] = -1
        self.done[replica] = self.uses[replica] = 0.0

    @property
    def on_device(self) -> float:
        """Share of the answered requests whose delta was on the device."""
        return float(self.counts[0] / max(self.counts[:2].sum(), 1))

    @property
    def refused(self) -> float:
        """Share of all requests that no replica took."""
        return float(self.counts[2] / max(self.counts.sum(), 1))

    def latency(self, share: float) -> float:
        """Seconds in which a share of the answered requests was answered."""
        sums = np.cumsum(self.latencies)
        return FINEST * STEP_OF_LATENCY ** float(np.searchsorted(sums, share * sums[-1]))


@dataclass(frozen=True)
class Routes:
    """What a balancer knows of tasks.

    Attributes:
        rule: how it chooses.
        order: replicas by task, in the order in which they are asked.
        factor: of the fair share, which a replica may have in flight.
        homes: by task, -1 behind the last.
        second: by task, -1 for none.
        counts_from: when a replica has loaded a task of which it is a home, by replica and task.
    """

    rule: Rule
    order: NDArray[np.int32]
    factor: float
    homes: NDArray[np.int32]
    second: NDArray[np.int32]
    counts_from: NDArray[np.float64]


def play(
    fleet: Fleet, routes: Routes, times: NDArray[np.float64], tasks: NDArray[np.int32], work: NDArray[np.float64]
) -> None:
    """Send requests in the order of their times; each has a task and takes `work` seconds of a replica."""
    _play(
        int(routes.rule), routes.factor, routes.order, routes.homes, routes.second, routes.counts_from,
        fleet.up, fleet.done, fleet.since, fleet.worth, fleet.uses, fleet.held, fleet.loading, fleet.ends,
        fleet.ends_at, fleet.ring, fleet.asked, fleet.busy, fleet.latencies, fleet.counts, times, tasks, work,
    )  # fmt: skip


def load_placed(
    fleet: Fleet, now: float, homes: NDArray[np.int32], second: NDArray[np.int32], rates: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Have each replica load what is placed on it and asked for, homes first, one delta after the other; second homes
    as far as nothing has to leave for them. Returns when each replica has loaded everything."""
    ends = np.full(fleet.replicas, now)
    _load_placed(homes, second, rates, ends, fleet.since, fleet.worth, fleet.uses, fleet.held)
    return ends


@njit(cache=True)
def seed(value):
    """Seed the balancers' chance."""
    np.random.seed(value)


@njit(cache=True)
def _admit(replica, task, now, ends, since, worth, uses, held):
    """Put a delta on a device at the time when it is loaded; the least used one leaves if the device is full."""
    least, slot = np.inf, -1
    for i in range(held.shape[1]):
        other = held[replica, i]
        if other < 0:
            slot = i
            break
        if worth[replica, other] < least and since[replica, other] <= now:
            least, slot = worth[replica, other], i
    if slot < 0:
        return
    if held[replica, slot] >= 0:
        since[replica, held[replica, slot]] = np.inf
    held[replica, slot] = task
    since[replica, task] = ends


@njit(cache=True)
def _use(replica, task, worth, uses):
    uses[replica] += 1
    faded = uses[replica] / HALF_LIFE
    worth[replica, task] = math.log2(2.0 ** (worth[replica, task] - faded) + 1.0) + faded


@njit(cache=True)
def _load_placed(homes, second, rates, ends, since, worth, uses, held):
    now = ends.copy()
    for task in range(homes.shape[0]):
        for i in range(homes.shape[1]):
            home = homes[task, i]
            if home < 0:
                break
            if rates[task] > 0 and since[home, task] == np.inf:
                ends[home] += LOAD
                _use(home, task, worth, uses)
                _admit(home, task, now[home], ends[home], since, worth, uses, held)
    for task in range(second.shape[0]):
        home = second[task]
        if home >= 0 and rates[task] > 0 and since[home, task] == np.inf and held[home, held.shape[1] - 1] < 0:
            ends[home] += LOAD
            _use(home, task, worth, uses)
            _admit(home, task, now[home], ends[home], since, worth, uses, held)


@njit(cache=True)
def _in_flight(replica, now, done, loading):
    return math.ceil(max(done[replica] - now, 0.0) / SERVICE) + loading[replica]


@njit(cache=True)
def _first_up(task, order, up):
    for i in range(order.shape[1]):
        if up[order[task, i]]:
            return order[task, i]
    return -1


@njit(cache=True)
def _least_in_flight(now, up, done, loading):
    found, least = -1, 1 << 60
    start = np.random.randint(up.size)
    for i in range(up.size):
        replica = (start + i) % up.size
        if up[replica]:
            count = _in_flight(replica, now, done, loading)
            if count < least:
                found, least = replica, count
    return found


@njit(cache=True)
def _bounded(task, now, most, order, up, done, loading):
    for i in range(order.shape[1]):
        replica = order[task, i]
        if up[replica] and _in_flight(replica, now, done, loading) < most:
            return replica
    return _least_in_flight(now, up, done, loading)


@njit(cache=True)
def _placed(task, now, most, homes, second, counts_from, order, up, done, loading):
    """A home that has loaded the task, by turns by chance; else the second home. What has too much in flight passes
    the request on to the next home, or to the second."""
    width = homes.shape[1]
    count = 0
    for i in range(width):
        if homes[task, i] < 0:
            break
        count += 1
    first, then = -1, -1
    if count:
        start = np.random.randint(count)
        for i in range(count):
            home = homes[task, (start + i) % count]
            if up[home] and counts_from[home, task] <= now:
                if first < 0:
                    first = home
                elif then < 0:
                    then = home
    if second[task] >= 0 and up[second[task]]:
        if first < 0:
            first = second[task]
        elif then < 0:
            then = second[task]
    if first < 0:
        return _first_up(task, order, up)
    if then >= 0:
        here = _in_flight(first, now, done, loading)
        if here > most and _in_flight(then, now, done, loading) < here:
            return then
    return first


@njit(cache=True)
def _play(
    rule, factor, order, homes, second, counts_from, up, done, since, worth, uses, held, loading, ends, ends_at, ring,
    asked, busy, latencies, counts, times, tasks, work,
):  # fmt: skip
    fair = 0.0
    for k in range(times.size):
        now, task = times[k], tasks[k]
        while ring[0] < ring[1] and ends[ring[0] % ends.size] <= now:
            loading[ends_at[ring[0] % ends.size]] -= 1
            ring[0] += 1
        if k % RECOUNT == 0:
            total, there = 0, 0
            for i in range(up.size):
                if up[i]:
                    there += 1
                    total += _in_flight(i, now, done, loading)
            fair = total / max(there, 1)
        if rule == 0:
            replica = np.random.randint(up.size)
            while not up[replica]:
                replica = np.random.randint(up.size)
        elif rule == 1:
            replica = _least_in_flight(now, up, done, loading)
        elif rule == 2:
            replica = _first_up(task, order, up)
        elif rule == 3:
            replica = _bounded(task, now, max(1, math.ceil(factor * fair)), order, up, done, loading)
        else:
            replica = _placed(task, now, factor * fair + SPARE, homes, second, counts_from, order, up, done, loading)
        asked[task] += 1
        if _in_flight(replica, now, done, loading) >= QUEUE:
            counts[2] += 1
            continue
        _use(replica, task, worth, uses)
        ready = now
        if since[replica, task] <= now:
            counts[0] += 1
        else:
            counts[1] += 1
            if since[replica, task] == np.inf:
                _admit(replica, task, now, now + LOAD, since, worth, uses, held)
            ready = min(max(since[replica, task], now), now + LOAD)
            if ring[1] - ring[0] < ends.size:
                ends[ring[1] % ends.size], ends_at[ring[1] % ends.size] = now + LOAD, replica
                ring[1] += 1
                loading[replica] += 1
        begun = max(done[replica], now)
        done[replica] = begun + work[k]
        busy[replica] += work[k]
        latency = max(begun, ready) + work[k] - now
        place = int(math.log(max(latency, FINEST) / FINEST) / math.log(STEP_OF_LATENCY))
        latencies[min(place, latencies.size - 1)] += 1

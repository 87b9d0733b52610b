"""A discrete-event simulation of one replica: the scheduler next to simpler policies, and cache policies, on traces.

    python -m benchmarks.simulate [--quick] [--trace FILE] [--json FILE]

The synthetic traces have 1,000 tasks drawn by Zipf's law, Poisson arrivals with bursts of one task, and lengths from a
lognormal distribution fitted to TREC and rotten tomatoes (MiniLM tokens). Their batches and switches take as long as
measured for MiniLM-L6 on 2 cores, or as long as on a GPU, where a batch's fixed part dominates. The recorded trace,
JSON lines of [seconds, task, tokens], is played with the times of the replica it was recorded on
(`benchmarks.traces.record`).

All policies but one run batches of one task, and switch between tasks. *Mixed* is the policy of batches of any tasks
(`serving.engine.all_keys`), whose rows are corrected beside the base: nothing switches, and a batch costs the more the
more its corrections multiply and the more tasks it has. It is simulated where these costs were measured, which is not
the case on a GPU; all its tasks keep 10 %, and none runs by exchange. One batch runs at a time.

Every policy gets the same rows, limits, bounded line and times. *Drained*: all rows wait from the start. *256 clients*:
each client asks again as soon as it is answered. The scheduler's throughput with 256 clients is load 1 of the *open*
runs, whose arrivals do not wait for answers. Rows that are refused (2,048 wait already), dropped or late (30 s) are
lost; latencies are those of the other rows. A row is *passed over* by a batch that runs while it waits and holds only
younger rows; batches that older rows need are not counted. The table has the row that was passed over most often.

Bounds that no schedule beats, however much it knows of the future (the first holds for batches of one task only):

- seconds to drain: every token once without padding, a fixed part for each full batch that a task's rows would
  fill, a switch for every task;
- rows a second: the same without switches, and each row takes its share of a full batch's fixed part;
- mean latency: a batch takes at least the tokens of its rows and their shares of a full batch's fixed part. Serving
  rows one after the other in those times, shortest remaining first with interruptions (optimal for the mean on one
  machine), is no later than any schedule of batches; nor does any row take less than a batch of its own.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.table import Table

from benchmarks.report import Row as Figure
from benchmarks.report import plain_table, report, with_shared_options
from benchmarks.retention import compare_retention
from serving.engine.all_keys import AllKeysPolicy
from serving.engine.costs import BatchCost, MixedCost, SwitchCost
from serving.engine.line import Line, Row
from serving.engine.one_key import OneKeyPolicy
from serving.engine.window import Limits


@dataclass(frozen=True)
class Times:
    """Seconds that a replica takes to switch tasks, for a batch, and for each of its tokens, padding included.

    Attributes:
        product, group: of a mixed batch, for each multiplication of its corrections and for each of its tasks; None
            where this was not measured.
    """

    switch: float
    fixed: float
    token: float
    product: float | None = None
    group: float | None = None

    def batch(self, padded: int) -> float:
        return self.fixed + self.token * padded

    def corrections(self, padded: int, groups: int) -> float:
        assert self.product is not None
        assert self.group is not None
        return self.product * PRODUCTS * padded + self.group * groups


LENGTHS = (2.97, 0.53)
"""Mean and deviation of the logarithm of token counts."""
TIMES = {
    "CPU": Times(switch=0.005, fixed=0.005, token=0.00013, product=6e-11, group=0.0005),
    "GPU": Times(switch=0.0005, fixed=0.006, token=2e-6),
}
PRODUCTS = 1_060_000
"""Multiplications that the correction of one token takes: MiniLM-L6's Linear layers with 10 % kept."""
LIMITS = Limits()
QUEUE_ROWS, CLIENTS, PATIENCE = 2048, 256, 30.0
LOADS = (0.5, 0.9, 1.2)
RECORDED = Path(__file__).parent / "traces" / "minilm.jsonl"


@dataclass(frozen=True)
class Arrival:
    """A row of a trace: seconds since its start, task, tokens."""

    at: float
    task: str
    tokens: int


Trace = list[Arrival]


def synthetic(rows: int, rate: float, tasks: int = 1000, seed: int = 0) -> Trace:
    """Arrivals at a mean rate of rows a second; a fifth of them in bursts of some 20 rows of one task within 0.1 s."""
    chance = random.Random(seed)
    names = [f"t{i}" for i in range(tasks)]
    weights = list(accumulate(1 / (i + 1) for i in range(tasks)))
    trace: Trace = []
    now = 0.0
    while len(trace) < rows:
        now += chance.expovariate(rate * (0.8 + 0.2 / 20))
        task = chance.choices(names, cum_weights=weights)[0]
        burst = chance.random() < 0.01 / 0.81
        for _ in range(1 + int(chance.expovariate(1 / 20)) if burst else 1):
            tokens = min(128, max(3, round(math.exp(chance.gauss(*LENGTHS)))))
            trace.append(Arrival(now + (chance.uniform(0, 0.1) if burst else 0.0), task, tokens))
    return sorted(trace, key=lambda a: a.at)[:rows]


def drifting(rows: int, rate: float) -> Trace:
    """As `synthetic`, but twenty times in the trace 50 tasks exchange their popularity with another task."""
    chance = random.Random(2)
    trace = synthetic(rows, rate)
    names = sorted({a.task for a in trace})
    now = dict(zip(names, names, strict=True))
    moved = []
    for i, arrival in enumerate(trace):
        if i % (rows // 20) == 0:
            for _ in range(50):
                one, other = chance.sample(names, 2)
                now[one], now[other] = now[other], now[one]
        moved.append(replace(arrival, task=now[arrival.task]))
    return moved


def read_trace(file: Path) -> tuple[Trace, dict[str, float]]:
    """A recorded trace, and the figures of its replica from the trace's first line, empty if it has none."""
    trace, measured = [], {}
    for line in file.read_text().splitlines():
        content = json.loads(line)
        if isinstance(content, dict):
            measured = content
        else:
            trace.append(Arrival(*content))
    return sorted(trace, key=lambda a: a.at), measured


# Policies


class Scheduler(Protocol):
    """What a replica asks of a policy and of the rows that wait for it."""

    def __len__(self) -> int: ...
    def add(self, row: Row[int]) -> None: ...
    def drop(self, now: float) -> list[Row[int]]: ...
    def next_batch(self, now: float, active: Hashable) -> list[Row[int]]: ...
    def run(self, batch: Sequence[Row[int]], active: Hashable, times: Times) -> Ran: ...


@dataclass(frozen=True)
class Ran:
    """What running a batch took in seconds, and which task the weights answer for afterwards; None is the base."""

    switching: float
    computing: float
    active: Hashable


def padded(batch: Sequence[Row[int]]) -> int:
    """Tokens of a batch, padding included."""
    return len(batch) * max(row.tokens for row in batch)


def by_exchange(batch: Sequence[Row[int]], active: Hashable, times: Times) -> Ran:
    """Run a batch of one task, whose delta is put into the weights first."""
    key = batch[0].key
    return Ran(0.0 if key == active else times.switch, times.batch(padded(batch)), key)


class Exchanging:
    """The engine's line and the policy of its executor that exchanges deltas."""

    def __init__(self) -> None:
        self.line: Line[int] = Line()
        self.cost, self.switch = BatchCost(), SwitchCost()
        self.policy = OneKeyPolicy(LIMITS, self.cost, self.switch)

    def __len__(self) -> int:
        return len(self.line)

    def add(self, row: Row[int]) -> None:
        self.line.add(row)

    def drop(self, now: float) -> list[Row[int]]:
        return self.line.drop(now)

    def next_batch(self, now: float, active: Hashable) -> list[Row[int]]:
        rows = self.policy.choose(self.line, now, active)
        self.line.take(rows, now)
        return rows

    def run(self, batch: Sequence[Row[int]], active: Hashable, times: Times) -> Ran:
        ran = by_exchange(batch, active, times)
        self.switch.note(ran.switching > 0)
        if ran.switching:
            self.switch.learn(ran.switching)
        self.cost.learn(padded(batch), ran.computing)
        return ran


class Mixing:
    """The engine's line and the policy of its executor that mixes tasks; every task mixes."""

    def __init__(self) -> None:
        self.line: Line[int] = Line()
        self.cost, self.extra = BatchCost(), MixedCost()
        self.policy = AllKeysPolicy(LIMITS, self.cost)

    def __len__(self) -> int:
        return len(self.line)

    def add(self, row: Row[int]) -> None:
        self.line.add(row)

    def drop(self, now: float) -> list[Row[int]]:
        return self.line.drop(now)

    def next_batch(self, now: float, active: Hashable) -> list[Row[int]]:
        rows = self.policy.choose(self.line, lambda row: True)
        self.line.take(rows, now)
        return rows

    def run(self, batch: Sequence[Row[int]], active: Hashable, times: Times) -> Ran:
        tokens, groups = padded(batch), len({row.key for row in batch})
        seconds = times.batch(tokens) + times.corrections(tokens, groups)
        # as `serving.engine.mixed` learns: a batch's time is known, its two parts are not
        extra = self.extra.of(tokens * PRODUCTS, groups)
        self.extra.learn(tokens * PRODUCTS, groups, seconds - self.cost.of(tokens))
        self.cost.learn(tokens, max(seconds - extra, 0.0))
        return Ran(0.0, seconds, None)


class ByOrder:
    """Queues by task. The next batch holds the oldest rows of the chosen task, as many as fit."""

    def __init__(self) -> None:
        self.queues: OrderedDict[Hashable, deque[Row[int]]] = OrderedDict()
        self._order: OrderedDict[int, Row[int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._order)

    def add(self, row: Row[int]) -> None:
        self.queues.setdefault(row.key, deque()).append(row)
        self._order[row.payload] = row

    def drop(self, now: float) -> list[Row[int]]:
        dropped = []
        while self._order and (oldest := self.oldest()).deadline <= now:  # rows wait equally long
            dropped.append(self._take(oldest.key))
        return dropped

    def next_batch(self, now: float, active: Hashable) -> list[Row[int]]:
        if not self._order:
            return []
        key = self.choose()
        batch = [self._take(key)]
        longest = batch[0].tokens
        while (row := self.follower(key)) is not None and len(batch) < LIMITS.rows:
            longest = max(longest, row.tokens)
            if longest * (len(batch) + 1) > LIMITS.tokens:
                break
            batch.append(self._take(key))
        return batch

    def run(self, batch: Sequence[Row[int]], active: Hashable, times: Times) -> Ran:
        return by_exchange(batch, active, times)

    def oldest(self) -> Row[int]:
        return next(iter(self._order.values()))

    def choose(self) -> Hashable:
        """The task whose oldest row runs next."""
        raise NotImplementedError

    def follower(self, key: Hashable) -> Row[int] | None:
        return self.queues[key][0] if key in self.queues else None

    def _take(self, key: Hashable) -> Row[int]:
        row = self.queues[key].popleft()
        if not self.queues[key]:
            del self.queues[key]
        del self._order[row.payload]
        return row


class Fifo(ByOrder):
    """Strict order of arrival: a batch ends where the next row belongs to another task."""

    def choose(self) -> Hashable:
        return self.oldest().key

    def follower(self, key: Hashable) -> Row[int] | None:
        return self.oldest() if self._order and self.oldest().key == key else None


class OldestFirst(ByOrder):
    """The task with the oldest row comes next, with its other waiting rows."""

    def choose(self) -> Hashable:
        return self.oldest().key


class RoundRobin(ByOrder):
    """Every task gets one batch in turn."""

    def choose(self) -> Hashable:
        key = next(iter(self.queues))
        self.queues.move_to_end(key)
        return key


class LongestQueue(ByOrder):
    """The task with the most rows comes next; among equals, the one that began to wait first."""

    def choose(self) -> Hashable:
        return max(self.queues, key=lambda key: len(self.queues[key]))


POLICIES: dict[str, Callable[[], Scheduler]] = {
    "ken": Exchanging,
    "FIFO": Fifo,
    "oldest task first": OldestFirst,
    "round robin": RoundRobin,
    "longest queue first": LongestQueue,
}
"""All run batches of one task. `Mixing` is left out, since it has other costs and other bounds."""


def policies(times: Times) -> dict[str, Callable[[], Scheduler]]:
    """The policies that can be simulated with these times."""
    return POLICIES if times.product is None else {"ken": Exchanging, "ken, mixed": Mixing, **POLICIES}


# The replica


@dataclass
class Outcome:
    """The result of a run: seconds and counts."""

    latencies: list[float] = field(default_factory=list)
    ran: int = 0
    refused: int = 0
    missed: int = 0
    switches: int = 0
    batches: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    passed_over: int = 0
    """Of the row that was passed over most often: how many batches ran while it waited and held only younger rows."""

    @property
    def rows(self) -> int:
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        return self.rows / self.seconds

    @property
    def padding(self) -> float:
        return 1 - self.tokens / self.padded

    @property
    def lost(self) -> float:
        return (self.refused + self.missed) / (self.rows + self.refused + self.missed)

    def latency(self, share: float) -> float:
        return sorted(self.latencies)[min(self.rows - 1, int(share * self.rows))]

    def measures(self) -> dict[str, tuple[float, str]]:
        """Name -> value and unit."""
        return {
            "seconds": (self.seconds, "s"),
            "throughput": (self.throughput, "1/s"),
            "mean latency": (statistics.mean(self.latencies), "s"),
            "p50": (self.latency(0.5), "s"),
            "p99": (self.latency(0.99), "s"),
            "switches a row": (self.switches / self.ran, "1"),
            "rows a batch": (self.ran / self.batches, "1"),
            "padding": (self.padding, "share"),
            "passed over, at most": (self.passed_over, "1"),
            "lost": (self.lost, "share"),
        }


class Replica:
    """One device that runs the batches a policy chooses.

    Args:
        clients: if given, arrival times are ignored, and so many rows are in line or running at any time.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        times: Times,
        queue_rows: float = QUEUE_ROWS,
        patience: float = PATIENCE,
        clients: int = 0,
    ) -> None:
        self.scheduler, self.times, self.now = scheduler, times, 0.0
        self._active: Hashable = None
        self._queue_rows, self._patience, self._clients = queue_rows, patience, clients
        self._admitted = 0
        self._since: dict[int, int] = {}
        """Row -> how many batches had run when it came."""
        self._oldest: list[int] = []
        """The oldest row of each batch. Rows are numbered in the order they came."""
        self._waited: list[tuple[int, int, int]] = []
        """Of each row that ran: its number, and the batches that had run when it came and when it ran."""
        self.outcome = Outcome()

    def run(self, trace: Sequence[Arrival]) -> Outcome:
        arrivals = deque(trace)
        while arrivals or len(self.scheduler):
            if not len(self.scheduler) and not self._clients:
                self.now = max(self.now, arrivals[0].at)
            self.admit(arrivals)
            self.step()
        self.outcome.seconds = self.now
        oldest = np.array(self._oldest)
        passed = [np.count_nonzero(oldest[since:ran] > number) for number, since, ran in self._waited]
        self.outcome.passed_over = int(max(passed, default=0))
        return self.outcome

    def admit(self, arrivals: deque[Arrival]) -> None:
        """Take in what has arrived, or as much as clients send."""
        while arrivals and (len(self.scheduler) < self._clients if self._clients else arrivals[0].at <= self.now):
            arrival = arrivals.popleft()
            if len(self.scheduler) >= self._queue_rows:
                self.outcome.refused += 1
                continue
            arrived = self.now if self._clients else arrival.at
            self._since[self._admitted] = len(self._oldest)
            self.scheduler.add(Row(arrival.task, arrival.tokens, arrived, arrived + self._patience, self._admitted))
            self._admitted += 1

    def step(self) -> None:
        """One turn of the engine."""
        done = self.outcome
        done.missed += len(self.scheduler.drop(self.now))
        batch = self.scheduler.next_batch(self.now, self._active)
        if not batch:
            return
        ran = self.scheduler.run(batch, self._active, self.times)
        self._active = ran.active
        self.now += ran.switching + ran.computing
        self._waited += [(row.payload, self._since.pop(row.payload), len(self._oldest)) for row in batch]
        self._oldest.append(min(row.payload for row in batch))
        done.switches += ran.switching > 0
        done.batches += 1
        done.ran += len(batch)
        done.padded += padded(batch)
        done.tokens += sum(row.tokens for row in batch)
        intime = [row for row in batch if row.deadline >= self.now]
        done.latencies += [self.now - row.arrived for row in intime]
        done.missed += len(batch) - len(intime)


# Bounds


def least_seconds(trace: Iterable[Arrival], times: Times) -> float:
    """Seconds that serving all rows takes at least, when all wait from the start."""
    trace = list(trace)
    per_task = Counter(a.task for a in trace)
    batches = sum(math.ceil(rows / LIMITS.rows) for rows in per_task.values())
    return sum(a.tokens for a in trace) * times.token + batches * times.fixed + len(per_task) * times.switch


def most_rows_a_second(trace: Sequence[Arrival], times: Times) -> float:
    return len(trace) / sum(_share(a, times) for a in trace)


def least_mean_latency(trace: Sequence[Arrival], times: Times) -> float:
    """The larger of two bounds, both from the module's docstring.

    One serves each row's smallest share of a batch, shortest remaining time first; the other gives each row a batch of
    its own.
    """
    left: list[tuple[float, float]] = []
    now = total = 0.0
    for arrival in [*trace, None]:
        until = arrival.at if arrival else math.inf
        while left and now < until:
            work, arrived = heapq.heappop(left)
            served = min(work, until - now)
            now += served
            if served < work:
                heapq.heappush(left, (work - served, arrived))
            else:
                total += now - arrived
        if arrival:
            now = max(now, until)
            heapq.heappush(left, (_share(arrival, times), arrival.at))
    alone = sum(times.batch(a.tokens) for a in trace)
    return max(total, alone) / len(trace)


def _share(arrival: Arrival, times: Times) -> float:
    return arrival.tokens * times.token + times.fixed / LIMITS.rows


# Scenarios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=RECORDED, metavar="FILE", help="replay this recorded trace")
    options = with_shared_options(parser).parse_args()
    if not options.trace.is_file():
        parser.error(f"--trace {options.trace}: no such file; expected what `benchmarks.traces.record` writes")
    rows = 4_000 if options.quick else 30_000
    results = [*synthetic_runs(rows), *recorded_runs(options.trace)]
    results += [
        compare_retention("Zipf", [arrival.task for arrival in synthetic(rows * 5, 100.0)]),
        compare_retention("drifting Zipf", [arrival.task for arrival in drifting(rows * 5, 100.0)]),
    ]
    figures = [figure for some, _ in results for figure in some]
    report("one replica, simulated", figures, options.json, [table for _, table in results])


def synthetic_runs(rows: int) -> Iterator[tuple[list[Figure], Table]]:
    for name, times in TIMES.items():
        together = [replace(a, at=0.0) for a in synthetic(rows, 1.0)]
        unlimited = {"queue_rows": math.inf, "patience": math.inf}
        least = least_seconds(together, times)
        yield compare(f"{name}, drained", together, times, {"seconds at least": least}, **unlimited)
        most = most_rows_a_second(together, times)
        capacity = Replica(Exchanging(), times, clients=CLIENTS).run(together).throughput
        yield compare(f"{name}, 256 clients", together, times, {"rows/s at most": most}, clients=CLIENTS)
        for load in LOADS:
            trace = synthetic(rows, capacity * load)
            bounds = {"mean at least": least_mean_latency(trace, times)} if load < 1 else {"rows/s at most": most}
            yield compare(f"{name}, open, load {load}", trace, times, bounds)


def recorded_runs(file: Path) -> Iterator[tuple[list[Figure], Table]]:
    trace, measured = read_trace(file)
    parts = ("switch", "fixed", "token", "product", "group")
    times = Times(**{part: measured.get(part, getattr(TIMES["CPU"], part)) for part in parts})
    bounds = {"mean at least": least_mean_latency(trace, times)}
    bounds |= {f"{share} as measured": measured[share] for share in ("p50", "p99") if share in measured}
    yield compare(f"recorded, {file.stem}", trace, times, bounds)
    for speed in (1.25, 1.5):
        faster = [replace(a, at=a.at / speed) for a in trace]
        bounds = {"mean at least": least_mean_latency(faster, times)}
        yield compare(f"recorded, {file.stem}, {speed} times as fast", faster, times, bounds)


def compare(
    name: str, trace: Trace, times: Times, bounds: dict[str, float], **options: Any
) -> tuple[list[Figure], Table]:
    """Run all policies on a trace."""
    known = ", ".join(f"{what} {value:.3g}" for what, value in bounds.items())
    columns = [
        "policy",
        "seconds",
        "rows/s",
        "mean s",
        "p50 s",
        "p99 s",
        "switches/row",
        "rows/batch",
        "padding",
        "passed over",
        "lost",
    ]
    table = plain_table(f"{name}: {len(trace):,} rows ({known})", columns)
    figures = [Figure(f"{name}: {what}", value, "1/s" if "rows" in what else "s") for what, value in bounds.items()]
    for policy, make in policies(times).items():
        out = Replica(make(), times, **options).run(trace)
        measures = out.measures()
        figures += [Figure(f"{name}, {policy}: {what}", value, unit) for what, (value, unit) in measures.items()]
        table.add_row(policy, *(f"{value:.3g}" for value, _ in measures.values()))
    return figures, table


if __name__ == "__main__":
    main()

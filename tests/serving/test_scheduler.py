"""The scheduler's guarantees, over generated arrivals, sizes, patience and service times."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.scheduler import Limits, Row, Scheduler

FOREVER = 1e9


@dataclass(frozen=True)
class Arrival:
    at: float
    key: str
    tokens: int
    patience: float = FOREVER
    leaves_at: float = FOREVER


@dataclass(frozen=True)
class Turn:
    """What was in line (by key, oldest first) when a batch was taken, and the batch."""

    now: float
    line: dict[Hashable, list[Row[int]]]
    batch: list[Row[int]]


@dataclass
class Run:
    rows: list[Row[int]]
    turns: list[Turn] = field(default_factory=list)
    dropped: list[Row[int]] = field(default_factory=list)


def run(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> Run:
    """Play arrivals against a scheduler whose batches take the given times in turn."""
    arrivals = sorted(arrivals, key=lambda a: a.at)
    rows = [Row(a.key, a.tokens, a.at, a.at + a.patience, i) for i, a in enumerate(arrivals)]
    scheduler: Scheduler[int] = Scheduler(limits)
    played = Run(rows)
    line: dict[Hashable, list[Row[int]]] = {}
    now, admitted, active = 0.0, 0, None
    while admitted < len(rows) or len(scheduler):
        if not len(scheduler):
            now = max(now, rows[admitted].arrived)
        while admitted < len(rows) and rows[admitted].arrived <= now:
            scheduler.add(rows[admitted])
            line.setdefault(rows[admitted].key, []).append(rows[admitted])
            admitted += 1
        for row, arrival in zip(rows, arrivals, strict=True):
            row.abandoned = arrival.leaves_at <= now
        gone = scheduler.drop(now)
        played.dropped += gone
        line = {k: kept for k, q in line.items() if (kept := [r for r in q if r not in gone])}
        batch = scheduler.next_batch(now, active)
        if not batch:
            continue
        played.turns.append(Turn(now, line, batch))
        line = {k: kept for k, q in line.items() if (kept := [r for r in q if r not in batch])}
        active = batch[0].key
        took = seconds[len(played.turns) % len(seconds)]
        scheduler.costs.learn_batch(sum(r.tokens for r in batch), took)
        now += took
        assert len(scheduler) == scheduler.rows == sum(map(len, line.values()))
        assert scheduler.tokens == sum(r.tokens for q in line.values() for r in q)
    return played


MOMENTS = st.integers(0, 400).map(lambda ms: ms / 100)
PATIENT = st.builds(Arrival, MOMENTS, st.sampled_from("abcd"), st.integers(1, 40))
IMPATIENT = st.builds(
    Arrival, MOMENTS, st.sampled_from("abcd"), st.integers(1, 40), st.floats(0.0, 2.0), st.floats(0.0, 6.0)
)
LIMITS = st.builds(Limits, st.integers(1, 5), st.integers(16, 64), st.sampled_from([0.05, 0.2, 1.0]))
SECONDS = st.lists(st.floats(0.001, 0.6), min_size=1, max_size=5)


@given(st.lists(PATIENT | IMPATIENT, max_size=40), LIMITS, SECONDS)
def test_no_row_is_lost_or_served_twice(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> None:
    played = run(arrivals, limits, seconds)
    ended = [r.payload for t in played.turns for r in t.batch] + [r.payload for r in played.dropped]
    assert sorted(ended) == list(range(len(arrivals)))


@given(st.lists(PATIENT | IMPATIENT, max_size=40), LIMITS, SECONDS)
def test_batches_never_mix_keys(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        assert len({row.key for row in turn.batch}) == 1


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_a_batch_keeps_to_its_rows_and_padded_tokens(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        padded = len(turn.batch) * max(r.tokens for r in turn.batch)
        assert len(turn.batch) <= limits.rows
        assert padded <= limits.tokens or len(turn.batch) == 1


def test_a_row_longer_than_a_batch_may_be_runs_alone() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(rows=8, tokens=16))
    for name, tokens in (("short", 4), ("long", 100), ("after", 4)):
        scheduler.add(Row("a", tokens, 0.0, FOREVER, name))
    batches = [[r.payload for r in scheduler.next_batch(0.0, None)] for _ in range(3)]
    assert batches == [["short"], ["long"], ["after"]]


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_a_batch_is_the_longest_run_of_oldest_rows_that_fits(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        queue, size = turn.line[turn.batch[0].key], len(turn.batch)
        assert sorted(r.payload for r in turn.batch) == [r.payload for r in queue[:size]]
        if size < len(queue) and size < limits.rows:
            assert (size + 1) * max(r.tokens for r in queue[: size + 1]) > limits.tokens


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_rows_of_a_batch_are_ordered_by_length(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        assert [r.tokens for r in turn.batch] == sorted(r.tokens for r in turn.batch)


@given(st.lists(st.builds(Arrival, MOMENTS, st.just("only"), st.integers(1, 40)), max_size=40), LIMITS, SECONDS)
def test_one_queue_is_served_first_in_first_out(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> None:
    windows = [sorted(r.payload for r in t.batch) for t in run(arrivals, limits, seconds).turns]
    assert [i for window in windows for i in window] == list(range(len(arrivals)))


BULK_AND_ONE = [*(Arrival(0.0, "bulk", 10) for _ in range(12)), Arrival(0.01, "one", 10)]


@settings(max_examples=300)
@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
@example(BULK_AND_ONE, Limits(rows=2, tokens=64, max_wait=0.05), [0.1])
def test_an_overdue_queue_runs_within_as_many_batches_as_queues_are_older(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    """Once a head is older than `max_wait`, each queue with an older head goes before it at most once.

    A queue that has just run and shows a head that is overdue again goes to the end of that line.
    """
    left: dict[Hashable, int] = {}
    ran: Hashable = None
    for turn in run(arrivals, limits, seconds).turns:
        overdue = {k for k, q in turn.line.items() if turn.now - q[0].arrived > limits.max_wait}
        for key in overdue - set(left):
            head = turn.line[key][0].arrived
            older = {k for k, q in turn.line.items() if k != key and q[0].arrived <= head}
            left[key] = len(overdue - {key} if key == ran else older) + 1
        ran = turn.batch[0].key
        left.pop(ran, None)
        left = {k: n - 1 for k, n in left.items()}
        assert all(left.values()), f"{[k for k, n in left.items() if not n]} should have run by {turn.now}"


@given(st.lists(IMPATIENT, max_size=40), LIMITS, SECONDS)
def test_rows_past_their_deadline_or_abandoned_are_dropped_and_never_in_a_batch(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    arrivals = sorted(arrivals, key=lambda a: a.at)
    played = run(arrivals, limits, seconds)
    for turn in played.turns:
        for row in turn.batch:
            assert row.deadline > turn.now
            assert arrivals[row.payload].leaves_at > turn.now
    assert all(arrivals[r.payload].leaves_at < FOREVER or r.deadline < FOREVER for r in played.dropped)


def test_a_row_that_is_neither_late_nor_abandoned_is_not_dropped() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits())
    for name, deadline in (("late", 1.0), ("left", FOREVER), ("waits", FOREVER)):
        scheduler.add(Row("a", 3, 0.0, deadline, name, abandoned=name == "left"))
    assert {r.payload for r in scheduler.drop(now=2.0)} == {"late", "left"}
    assert [r.payload for r in scheduler.next_batch(2.0, None)] == ["waits"]


class _LeavesMeanwhile(Row[str]):
    """A row whose client goes away while the scheduler looks: the second look finds it abandoned."""

    looks = 0

    @property
    def abandoned(self) -> bool:
        self.looks += 1
        return self.looks > 1

    @abandoned.setter
    def abandoned(self, value: bool) -> None: ...


def test_a_row_abandoned_while_others_are_dropped_is_not_lost_from_the_counts() -> None:
    """Callers mark rows from their own thread, without the engine's lock."""
    scheduler: Scheduler[str] = Scheduler(Limits())
    scheduler.add(Row("a", 3, 0.0, FOREVER, "left", abandoned=True))
    scheduler.add(_LeavesMeanwhile("a", 5, 0.0, FOREVER, "leaves meanwhile"))
    ended = scheduler.drop(1.0) + scheduler.drop(1.0) + scheduler.next_batch(1.0, None)
    assert {r.payload for r in ended} == {"left", "leaves meanwhile"}
    assert (len(scheduler), scheduler.tokens) == (0, 0)


def test_nothing_in_line_gives_no_batch() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits())
    assert scheduler.next_batch(0.0, "a") == []
    assert not scheduler


@given(st.integers(1, 8), st.integers(1, 40))
def test_it_stays_with_the_active_queue_when_another_is_no_better(rows: int, tokens: int) -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(rows=4, tokens=4096, max_wait=10.0))
    for key, arrived in (("other", 0.0), ("active", 0.1)):
        for _ in range(rows):
            scheduler.add(Row(key, tokens, arrived, FOREVER, ""))
    assert scheduler.next_batch(0.2, "active")[0].key == "active"


def test_among_inactive_queues_the_one_with_more_work_for_its_switch_comes_first() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(max_wait=10.0))
    scheduler.add(Row("little", 5, 0.0, FOREVER, ""))
    for _ in range(10):
        scheduler.add(Row("much", 5, 0.1, FOREVER, ""))
    assert scheduler.next_batch(0.2, "elsewhere")[0].key == "much"


def test_an_overdue_head_comes_before_the_active_queue() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(max_wait=0.5))
    scheduler.add(Row("waits", 5, 0.0, FOREVER, ""))
    scheduler.add(Row("active", 5, 0.1, FOREVER, ""))
    assert scheduler.next_batch(0.55, "active")[0].key == "waits"


def test_what_is_due_soonest_comes_before_the_active_queue() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(max_wait=0.5))
    scheduler.add(Row("active", 5, 0.0, FOREVER, ""))
    scheduler.add(Row("soon", 5, 0.1, 0.55, ""))
    scheduler.add(Row("sooner", 5, 0.1, 0.5, ""))
    order = [scheduler.next_batch(0.2, "active")[0].key for _ in range(3)]
    assert order == ["sooner", "soon", "active"]


def test_a_deadline_far_away_does_not_cause_a_switch() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(max_wait=0.5))
    scheduler.add(Row("active", 5, 0.0, FOREVER, ""))
    scheduler.add(Row("later", 5, 0.0, 30.0, ""))
    assert scheduler.next_batch(0.2, "active")[0].key == "active"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=20))
def test_the_backlog_grows_with_every_row_and_is_zero_when_all_are_served(rows: list[tuple[str, int]]) -> None:
    scheduler: Scheduler[str] = Scheduler(Limits(rows=4, tokens=64))
    seen = [scheduler.backlog_seconds()]
    for key, tokens in rows:
        scheduler.add(Row(key, tokens, 0.0, FOREVER, ""))
        seen.append(scheduler.backlog_seconds())
    assert seen[0] == 0.0
    assert all(before < after for before, after in pairwise(seen))
    while scheduler.next_batch(0.0, None):
        pass
    assert scheduler.backlog_seconds() == 0.0


def test_the_backlog_follows_what_batches_and_switches_were_measured_to_take() -> None:
    scheduler: Scheduler[str] = Scheduler(Limits())
    scheduler.add(Row("a", 100, 0.0, FOREVER, ""))
    for _ in range(100):
        scheduler.costs.learn_batch(tokens=10, seconds=0.1)
        scheduler.costs.learn_switch(seconds=0.5)
    assert abs(scheduler.backlog_seconds() - (100 * 0.01 + 0.5)) < 1e-3

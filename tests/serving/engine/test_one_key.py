"""The guarantees of batches of one key, over generated arrivals, sizes, patience and service times."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from choosing import Choosing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from serving.engine.line import Row
from serving.engine.window import Limits

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
    """Play arrivals against the policy whose batches take the given times in turn."""
    arrivals = sorted(arrivals, key=lambda a: a.at)
    rows = [Row(a.key, a.tokens, a.at, a.at + a.patience, i) for i, a in enumerate(arrivals)]
    choosing: Choosing[int] = Choosing(limits)
    played = Run(rows)
    line: dict[Hashable, list[Row[int]]] = {}
    now, admitted, active = 0.0, 0, None
    while admitted < len(rows) or len(choosing.line):
        if not len(choosing.line):
            now = max(now, rows[admitted].arrived)
        while admitted < len(rows) and rows[admitted].arrived <= now:
            choosing.add(rows[admitted])
            line.setdefault(rows[admitted].key, []).append(rows[admitted])
            admitted += 1
        choosing.line.abandon([row for row, arrival in zip(rows, arrivals, strict=True) if arrival.leaves_at <= now])
        gone = choosing.line.drop(now)
        played.dropped += gone
        line = {k: kept for k, q in line.items() if (kept := [r for r in q if r not in gone])}
        batch = choosing.next_batch(now, active)
        if not batch:
            continue
        played.turns.append(Turn(now, line, batch))
        line = {k: kept for k, q in line.items() if (kept := [r for r in q if r not in batch])}
        active = batch[0].key
        took = seconds[len(played.turns) % len(seconds)]
        choosing.cost.learn(len(batch) * batch[-1].tokens, took)
        now += took
        waiting = {key: (queue.head, len(queue), queue.tokens) for key, queue in choosing.line.queues.items()}
        assert len(choosing.line) == sum(map(len, line.values()))
        assert waiting == {key: (q[0], len(q), sum(r.tokens for r in q)) for key, q in line.items()}
    return played


MOMENTS = st.integers(0, 400).map(lambda ms: ms / 100)
PATIENT = st.builds(Arrival, MOMENTS, st.sampled_from("abcd"), st.integers(1, 40))
IMPATIENT = st.builds(
    Arrival, MOMENTS, st.sampled_from("abcd"), st.integers(1, 40), st.floats(0.0, 2.0), st.floats(0.0, 6.0)
)
LIMITS = st.builds(
    Limits, st.integers(1, 5), st.integers(16, 64), st.sampled_from([0.05, 0.2, 1.0]), st.integers(1, 12)
)
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
    choosing: Choosing[str] = Choosing(Limits(rows=8, tokens=16))
    for name, tokens in (("short", 4), ("long", 100), ("after", 4)):
        choosing.add(Row("a", tokens, 0.0, FOREVER, name))
    batches = [[r.payload for r in choosing.next_batch(0.0, None)] for _ in range(2)]
    assert batches == [["short", "after"], ["long"]]


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_a_batch_lies_together_in_order_of_length_among_its_queues_oldest_rows(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        window = turn.line[turn.batch[0].key][: limits.window]
        left = [r.tokens for r in window if r not in turn.batch]
        assert all(row in window for row in turn.batch)
        assert not [n for n in left if turn.batch[0].tokens < n < turn.batch[-1].tokens]


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_of_rows_of_one_length_the_older_runs_first(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        for row in turn.batch:
            older = [r for r in turn.line[row.key] if r.tokens == row.tokens and r.number < row.number]
            assert all(r in turn.batch for r in older)


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_every_batch_serves_its_queues_oldest_row(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    """So a row with n older ones in its queue runs within n + 1 of the queue's batches."""
    for turn in run(arrivals, limits, seconds).turns:
        assert turn.line[turn.batch[0].key][0] in turn.batch


@given(st.lists(PATIENT, max_size=40), LIMITS, SECONDS)
def test_rows_of_a_batch_are_ordered_by_length(arrivals: list[Arrival], limits: Limits, seconds: list[float]) -> None:
    for turn in run(arrivals, limits, seconds).turns:
        assert [r.tokens for r in turn.batch] == sorted(r.tokens for r in turn.batch)


@given(st.lists(st.builds(Arrival, MOMENTS, st.just("only"), st.just(8)), max_size=40), LIMITS, SECONDS)
def test_one_queue_of_equal_lengths_runs_first_in_first_out_in_full_batches(
    arrivals: list[Arrival], limits: Limits, seconds: list[float]
) -> None:
    turns = run(arrivals, limits, seconds).turns
    full = min(limits.rows, limits.tokens // 8, limits.window)
    assert [r.payload for turn in turns for r in turn.batch] == list(range(len(arrivals)))
    assert all(len(turn.batch) == min(full, len(turn.line["only"])) for turn in turns)


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
        overdue = {k for k, q in turn.line.items() if q[0].arrived + limits.max_wait < turn.now}
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


def test_what_has_run_is_not_kept_alive_by_its_deadline() -> None:
    choosing: Choosing[object] = Choosing(Limits())
    payload = _Payload()
    gone = weakref.ref(payload)
    choosing.add(Row("a", 3, 0.0, FOREVER, payload))
    del payload
    choosing.next_batch(0.0, None)
    assert gone() is None


class _Payload: ...


def test_nothing_in_line_gives_no_batch() -> None:
    choosing: Choosing[str] = Choosing(Limits())
    assert choosing.next_batch(0.0, "a") == []
    assert not choosing.line


@given(st.integers(1, 8), st.integers(1, 40))
def test_it_stays_with_the_active_queue_when_another_is_no_better(rows: int, tokens: int) -> None:
    choosing: Choosing[str] = Choosing(Limits(rows=4, tokens=4096))
    for key in ("other", "active"):
        for _ in range(rows):
            choosing.add(Row(key, tokens, 0.0, FOREVER, ""))
    assert choosing.next_batch(0.2, "active")[0].key == "active"


def test_it_does_not_stay_for_ever_with_an_active_queue_that_grows_again() -> None:
    choosing: Choosing[str] = Choosing(Limits(max_wait=1e6))
    choosing.add(Row("other", 5, 0.0, FOREVER, ""))
    for turn in range(100):
        for _ in range(32):
            choosing.add(Row("active", 5, turn / 10, FOREVER, ""))
        if choosing.next_batch(turn / 10 + 0.1, "active")[0].key == "other":
            return
    pytest.fail("the other queue never ran")


def test_of_equally_old_queues_the_one_that_gets_more_rows_a_second_done_comes_first() -> None:
    choosing: Choosing[str] = Choosing(Limits())
    choosing.add(Row("little", 5, 0.0, FOREVER, ""))
    for _ in range(10):
        choosing.add(Row("much", 5, 0.0, FOREVER, ""))
    assert choosing.next_batch(0.2, "elsewhere")[0].key == "much"


def test_a_clearly_older_queue_comes_before_a_larger_one() -> None:
    choosing: Choosing[str] = Choosing(Limits())
    choosing.add(Row("little", 5, 0.0, FOREVER, ""))
    for _ in range(10):
        choosing.add(Row("much", 5, 0.9, FOREVER, ""))
    assert choosing.next_batch(1.0, "elsewhere")[0].key == "little"


def test_an_overdue_head_comes_before_the_active_queue() -> None:
    choosing: Choosing[str] = Choosing(Limits(max_wait=0.5))
    choosing.add(Row("waits", 5, 0.0, FOREVER, ""))
    choosing.add(Row("active", 5, 0.1, FOREVER, ""))
    assert choosing.next_batch(0.55, "active")[0].key == "waits"


def test_what_is_due_soonest_comes_before_the_active_queue() -> None:
    choosing: Choosing[str] = Choosing(Limits(max_wait=0.5))
    choosing.add(Row("active", 5, 0.0, FOREVER, ""))
    choosing.add(Row("soon", 5, 0.1, 0.28, ""))
    choosing.add(Row("sooner", 5, 0.1, 0.25, ""))
    order = [choosing.next_batch(0.2, "active")[0].key for _ in range(3)]
    assert order == ["sooner", "soon", "active"]


def test_a_row_that_cannot_meet_its_deadline_any_more_does_not_come_first() -> None:
    choosing: Choosing[str] = Choosing(Limits())
    choosing.add(Row("active", 5, 0.0, FOREVER, ""))
    choosing.add(Row("hopeless", 5, 0.1, 0.2 + choosing.switch.seconds, ""))
    assert choosing.next_batch(0.2, "active")[0].key == "active"


def test_a_deadline_far_away_does_not_cause_a_switch() -> None:
    choosing: Choosing[str] = Choosing(Limits(max_wait=0.5))
    choosing.add(Row("active", 5, 0.0, FOREVER, ""))
    choosing.add(Row("later", 5, 0.0, 30.0, ""))
    assert choosing.next_batch(0.2, "active")[0].key == "active"


def test_a_row_that_is_due_runs_from_behind_its_window_in_a_batch_it_has_time_for() -> None:
    choosing: Choosing[str] = Choosing(Limits(window=8))
    for _ in range(20):
        choosing.add(Row("a", 50, 0.0, FOREVER, "patient"))
    choosing.add(Row("a", 50, 0.0, 0.05, "due"))
    choosing.cost.fixed, choosing.cost.token = 0.005, 0.0002
    batch = choosing.next_batch(0.0, "a")
    assert "due" in [r.payload for r in batch]
    assert choosing.cost.of(len(batch) * 50) <= 0.05


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 40)), min_size=1, max_size=20))
def test_the_backlog_grows_with_every_row_and_is_zero_when_all_are_served(rows: list[tuple[str, int]]) -> None:
    choosing: Choosing[str] = Choosing(Limits(rows=4, tokens=64))
    seen = [choosing.backlog_seconds()]
    for key, tokens in rows:
        choosing.add(Row(key, tokens, 0.0, FOREVER, ""))
        seen.append(choosing.backlog_seconds())
    assert seen[0] == 0.0
    assert all(before < after for before, after in pairwise(seen))
    while choosing.next_batch(0.0, None):
        pass
    assert choosing.backlog_seconds() == 0.0


def test_the_backlog_counts_tokens_batches_and_switches() -> None:
    choosing: Choosing[str] = Choosing(Limits(rows=2))
    choosing.cost.token, choosing.cost.fixed, choosing.switch.seconds = 0.01, 0.1, 0.5
    for key in "aaab":
        choosing.add(Row(key, 10, 0.0, FOREVER, ""))
    assert choosing.backlog_seconds() == pytest.approx(40 * 0.01 + 3 * 0.1 + 2 * 0.5)

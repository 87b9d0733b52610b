"""Who waits: whatever comes, leaves, runs and gives up, in whatever order, for rows of any keys."""

from __future__ import annotations

import random
import weakref
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.line import Line, Row

FOREVER = 1e9


def row(name: str, key: Hashable = "a", tokens: int = 3, deadline: float = FOREVER) -> Row[str]:
    return Row(key, tokens, 0.0, deadline, name)


def line_of(*rows: Row[str]) -> Line[str]:
    line: Line[str] = Line()
    for one in rows:
        line.add(one)
    return line


def waiting(line: Line[str]) -> list[str]:
    """Of all queues, oldest first."""
    rows = [one for queue in line.queues.values() for one in queue.rows.values()]
    return [one.payload for one in sorted(rows, key=lambda one: one.number)]


def test_an_empty_line_has_no_queue() -> None:
    line = line_of()
    assert (len(line), line.wanted, dict(line.queues)) == (0, 0, {})
    assert line.drop(0.0) == []
    assert not line


def test_rows_are_queued_by_key_oldest_first() -> None:
    line = line_of(row("1", "a", 5), row("2", "b", 7), row("3", "a", 11))
    assert {key: [r.payload for r in queue.rows.values()] for key, queue in line.queues.items()} == {
        "a": ["1", "3"],
        "b": ["2"],
    }
    assert {key: (queue.head.payload, len(queue), queue.tokens) for key, queue in line.queues.items()} == {
        "a": ("1", 2, 16),
        "b": ("2", 1, 7),
    }


def test_rows_of_several_keys_are_taken_at_once() -> None:
    rows = [row("1", "a"), row("2", "b"), row("3", "a"), row("4", "c")]
    line = line_of(*rows)
    line.take([rows[0], rows[1], rows[3]], 5.0)
    assert waiting(line) == ["3"]
    assert {key: queue.ran for key, queue in line.queues.items()} == {"a": 5.0}
    assert line.queues["a"].head is rows[2]


def test_a_queue_remembers_when_it_last_ran_and_a_new_one_never_did() -> None:
    rows = [row("1", "a"), row("2", "a"), row("3", "b")]
    line = line_of(*rows)
    line.take([rows[0]], 5.0)
    assert (line.queues["a"].ran, line.queues["b"].ran) == (5.0, float("-inf"))
    line.take([rows[1]], 6.0)
    line.add(row("4", "a"))
    assert line.queues["a"].ran == float("-inf")


def test_a_row_that_was_dropped_does_not_count_as_run() -> None:
    line = line_of(row("late", deadline=1.0), row("waits"))
    line.drop(2.0)
    assert line.queues["a"].ran == float("-inf")


def test_a_row_that_is_neither_late_nor_abandoned_is_not_dropped() -> None:
    rows = [row("late", deadline=1.0), row("left", deadline=9.0), row("waits", deadline=9.0)]
    line = line_of(*rows)
    line.abandon([rows[1]])
    assert line.wanted == 2
    assert {r.payload for r in line.drop(now=2.0)} == {"late", "left"}
    assert waiting(line) == ["waits"]
    assert line.wanted == 1


def test_abandoning_twice_or_after_it_ran_changes_nothing() -> None:
    ran, left = row("ran"), row("left")
    line = line_of(ran, left)
    line.take([ran], 0.0)
    line.abandon([ran, left])
    line.abandon([left])
    assert line.drop(1.0) == [left]
    assert (ran.abandoned, left.abandoned) == (False, True)
    assert (len(line), line.wanted, dict(line.queues)) == (0, 0, {})


def test_the_first_due_row_is_that_of_the_first_deadline_among_those_in_line() -> None:
    rows = [row("later", "a", deadline=9.0), row("first", "b", deadline=3.0), row("second", "a", deadline=5.0)]
    line = line_of(*rows)
    assert line.first_due() is rows[1]
    line.take([rows[1]], 0.0)
    assert line.first_due() is rows[2]


def test_what_has_run_is_not_kept_alive_by_its_deadline() -> None:
    line: Line[object] = Line()
    payload = _Payload()
    gone = weakref.ref(payload)
    line.add(Row("a", 3, 0.0, FOREVER, payload))
    del payload
    line.take(list(line.queues["a"].rows.values()), 0.0)
    assert gone() is None


class _Payload: ...


def test_a_row_that_does_not_wait_cannot_be_taken() -> None:
    one = row("1")
    line = line_of(one, row("2"))
    line.take([one], 0.0)
    with pytest.raises(KeyError):
        line.take([one], 1.0)


@given(st.lists(st.sampled_from(["add", "add", "add", "take", "abandon", "drop"]), max_size=120), st.integers(0, 1000))
def test_a_line_holds_what_came_and_has_not_left(steps: list[str], seed: int) -> None:
    chance, line, expected, now = random.Random(seed), line_of(), dict[int, Row[str]](), 0.0
    for step in steps:
        now += chance.random()
        some = chance.sample(list(expected.values()), chance.randint(0, len(expected)))
        if step == "add":
            one = row("", chance.choice("abc"), chance.randint(1, 9), now + chance.choice([0.5, 5.0, 50.0]))
            line.add(one)
            expected[one.number] = one
        elif step == "take":
            line.take(some, now)
            expected = {n: r for n, r in expected.items() if r not in some}
        elif step == "abandon":
            line.abandon(some)
        else:
            late = {n for n, r in expected.items() if r.abandoned or r.deadline <= now}
            assert sorted(r.number for r in line.drop(now)) == sorted(late)
            expected = {n: r for n, r in expected.items() if n not in late}
        by_key = {key: [r for r in expected.values() if r.key == key] for key in {r.key for r in expected.values()}}
        assert {key: list(queue.rows.values()) for key, queue in line.queues.items()} == by_key
        assert {key: (queue.head, queue.tokens) for key, queue in line.queues.items()} == {
            key: (rows[0], sum(r.tokens for r in rows)) for key, rows in by_key.items()
        }
        assert len(line) == len(expected)
        if expected:
            assert line.first_due().deadline == min(r.deadline for r in expected.values())

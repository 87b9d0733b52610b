"""Each client's turn comes, however many items other clients have queued."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.workers.steps import Steps, finish, together
from serving.workers.turns import Turns

CLIENTS = st.integers(0, 5)


@given(st.lists(CLIENTS | st.none(), max_size=80))
def test_with_k_clients_in_line_each_has_one_of_the_next_k_turns(moves: list[int | None]) -> None:
    """A number stands for a client that adds an item, None for a turn."""
    turns: Turns[tuple[int, int]] = Turns()
    in_line: dict[int, list[int]] = {}
    allowed: dict[int, int] = {}  # turns that other clients may have before this one's
    for number, move in enumerate([*moves, *[None] * len(moves)]):
        if move is not None:
            turns.add(move, (move, number))
            in_line.setdefault(move, []).append(number)
            allowed.setdefault(move, len(in_line) - 1)
        elif in_line:
            client, taken = turns.take()
            assert taken == in_line[client].pop(0), "a client's items keep their order"
            allowed.pop(client)
            assert all(left > 0 for left in allowed.values())
            allowed = {other: left - 1 for other, left in allowed.items()}
            if in_line[client]:
                allowed[client] = len(in_line) - 1
            else:
                del in_line[client]
        assert len(turns) == sum(map(len, in_line.values()))
    assert not turns


def test_nobody_has_a_turn_where_nobody_is_in_line() -> None:
    with pytest.raises(IndexError):
        Turns().take()


def test_what_is_discarded_has_no_turn() -> None:
    turns: Turns[str] = Turns()
    for client, item in (("a", "a1"), ("a", "a2"), ("b", "b1")):
        turns.add(client, item)
    assert [turns.discard("a", "a1"), turns.discard("b", "b1"), turns.discard("b", "b1")] == [True, True, False]
    assert (turns.take(), len(turns), bool(turns)) == ("a2", 0, False)


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 20))
def test_neighbours_share_a_step_as_far_as_they_are_small(sizes: list[int], most: int) -> None:
    steps = list(together(sizes, most))
    assert [i for step in steps for i in step] == list(range(len(sizes)))
    assert all(len(step) == 1 or sum(sizes[step.start : step.stop]) <= most for step in steps)
    assert all(sum(sizes[a.start : b.start + 1]) > most for a, b in pairwise(steps))


def test_steps_of_which_nothing_else_has_a_turn_are_done_at_once() -> None:
    def steps() -> Steps[str]:
        yield 1
        yield 2
        return "done"

    assert finish(steps()) == "done"

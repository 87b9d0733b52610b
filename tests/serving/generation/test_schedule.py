"""Which continuations run, and whose keys and values have room."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.generation.schedule import Part, Room, Schedule
from serving.generation.sequence import Continuation

BLOCK = 4
NEVER = math.inf
One = Continuation[None]


def one(key: str, prompt: int, most: int = 3, deadline: float = NEVER) -> One:
    return Continuation(key, list(range(prompt)), most, 0.0, deadline, None)


def schedule(tokens: int = 64, rows: int = 8) -> Schedule[None]:
    return Schedule(Room(tokens, BLOCK), rows)


def run(made: Schedule[None], parts: list[Part[None]]) -> list[One]:
    """Compute a step's parts as the generator does; those that ended."""
    ended = []
    for part in parts:
        part.of.computed += part.tokens
        if part.of.left == 0:
            part.of.output.append(100 + len(part.of.output))
            if len(part.of.output) == part.of.most:
                made.remove(part.of)
                ended.append(part.of)
    return ended


def first(made: Schedule[None]) -> Hashable | None:
    return next(iter(made.running_by_key()), None)


def take_turn(made: Schedule[None]) -> str | None:
    key = first(made)
    made.ran([] if key is None else [key])
    return key  # type: ignore[return-value]


def sizes(parts: list[Part[None]]) -> list[tuple[int, int]]:
    return [(part.of.number, part.tokens) for part in parts]


def test_prompts_come_in_parts_after_those_that_have_one_token_to_compute() -> None:
    made = schedule()
    made.add([one("a", 3), one("a", 10)])
    assert sizes(made.plan(["a"], 5)) == [(0, 3), (1, 2)]
    run(made, made.plan(["a"], 5))
    assert sizes(made.plan(["a"], 5)) == [(0, 1), (1, 5)]
    run(made, made.plan(["a"], 5))
    assert sizes(made.plan(["a"], 5)) == [(0, 1), (1, 3)]


def test_keys_take_turns() -> None:
    made = schedule()
    made.add([one("a", 2), one("b", 2), one("a", 2), one("c", 2)])
    assert [take_turn(made) for _ in range(5)] == ["a", "b", "c", "a", "b"]
    made.add([one("d", 2), one("e", 2)])
    assert [take_turn(made) for _ in range(6)] == ["c", "a", "d", "e", "b", "c"], "new keys wait for those that wait"


def test_keys_that_keep_coming_do_not_starve_those_that_run() -> None:
    made = schedule(tokens=400)
    made.add([one("old", 2, most=50), one("older", 2, most=50)])
    turns = []
    for number in range(40):
        made.add([one(f"new {number}", 2)])
        turns.append(take_turn(made))
        for part in made.plan([turns[-1]], 99):
            if part.of.key not in ("old", "older"):
                made.remove(part.of)
    assert turns.count("old") + turns.count("older") >= 2
    waits = [turns[i + 1 :].index("old") for i, key in enumerate(turns) if key == "old" and "old" in turns[i + 1 :]]
    assert max(waits) <= 20


@pytest.mark.parametrize(("keys", "each", "rows"), [(3, 1, 2), (48, 1, 32), (5, 2, 4)])
def test_keys_that_a_step_has_no_rows_for_take_turns_evenly(keys: int, each: int, rows: int) -> None:
    made = schedule(tokens=4000, rows=rows)
    made.add([one(str(number), 2, most=9) for number in range(keys) for _ in range(each)])
    steps: Counter[object] = Counter()
    for _ in range(300):
        taken = made.together(list(made.running_by_key()))
        assert len(taken) * each == rows
        made.ran(dict.fromkeys(part.of.key for part in made.plan(taken, 99)))
        steps.update(taken)
    assert max(steps.values()) - min(steps.values()) <= 1


def test_a_key_runs_no_more_rows_than_a_step_has_and_others_pass_it() -> None:
    made = schedule(rows=2)
    made.add([one("a", 2) for _ in range(3)] + [one("b", 2)])
    assert sizes(made.plan(["a"], 99)) == [(0, 2), (1, 2)]
    assert sizes(made.plan(["b"], 99)) == [(3, 2)]
    assert made.waiting == 1


def test_who_waits_for_room_is_not_overtaken() -> None:
    made = schedule(tokens=16)
    made.add([one("a", 11), one("b", 9), one("b", 2)])
    assert first(made) == "a"
    assert not made.has_others(["a"])
    assert (made.running, made.waiting, made.used) == (1, 2, 12)


def test_a_key_with_much_room_lets_others_in_before_it_gets_more() -> None:
    made = schedule(tokens=16)
    made.add([one("a", 3, most=1) for _ in range(10)])
    assert len(made.plan(["a"], 99)) == 4
    made.add([one("b", 3)])
    run(made, made.plan(["a"], 3))
    assert made.has_others(["a"])
    assert sizes(made.plan(["b"], 99)) == [(10, 3)]


def test_a_key_with_much_room_gives_it_up_first() -> None:
    made = schedule(tokens=16)
    made.add([one("a", 3, most=9), one("a", 3, most=9), one("a", 3, most=9), one("b", 3, most=9)])
    for key in "ab":
        run(made, made.plan([key], 99))
    run(made, made.plan(["b"], 99))
    assert sizes(made.plan(["b"], 99)) == [(3, 1)]
    assert [c.number for c in made.all() if c.computed == 0] == [2]


def test_the_youngest_makes_room_and_is_computed_again() -> None:
    made = schedule(tokens=16)
    made.add([one("a", 7, most=9), one("b", 7, most=9)])
    run(made, made.plan(["a"], 99))
    run(made, made.plan(["b"], 99))
    run(made, made.plan(["a"], 99))
    young = next(c for c in made.all() if c.key == "b")
    young.past = "kept"
    assert sizes(made.plan(["a"], 99)) == [(0, 1)]
    assert (made.preempted, made.used, young.past, young.computed, young.left) == (1, 12, None, 0, 8)
    assert first(made) == "a"
    for _ in range(7):
        run(made, made.plan(["a"], 99))
    assert first(made) == "b"
    assert sizes(made.plan(["b"], 99)) == [(1, 8)], "its prompt, and the token that was generated"


def test_the_abandoned_and_the_late_free_their_room() -> None:
    made = schedule(tokens=16)
    some = [one("a", 7), one("a", 3, deadline=5.0), one("a", 8), one("b", 8, deadline=5.0)]
    made.add(some)
    made.plan(["a"], 99)
    some[0].abandoned = True
    assert made.drop(4.0) == [some[0]]
    assert sorted(c.number for c in made.drop(5.0)) == [1, 3]
    made.plan(["a"], 99)
    assert list(made.all()) == [some[2]]
    assert made.used == 12
    some[2].abandoned = True
    made.drop(6.0)
    assert (len(made), made.used, first(made)) == (0, 0, None)


@pytest.mark.parametrize(("prompt", "most", "fits"), [(1, 16, True), (1, 17, False), (16, 1, True), (17, 1, False)])
def test_the_last_token_needs_no_room(prompt: int, most: int, fits: bool) -> None:
    made = schedule(tokens=16)
    assert (prompt + most <= made.room.longest) == fits
    if fits:
        made.add([one("a", prompt, most)])
        for _ in range(most):
            ended = run(made, made.plan(["a"], 99))
        assert len(ended) == 1


sequences = st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 20))


@given(st.lists(sequences, min_size=1, max_size=12), st.integers(40, 80), st.integers(1, 4), st.integers(1, 30))
def test_all_end_within_the_room_and_in_order(
    asked: list[tuple[str, int, int]], tokens: int, rows: int, prompt_tokens: int
) -> None:
    made = Schedule[None](Room(tokens // BLOCK * BLOCK, BLOCK), rows)
    some = [one(*told) for told in asked]
    made.add(some)
    done: list[One] = []
    lost: Counter[int] = Counter()
    for _ in range(20_000):
        key = take_turn(made)
        if key is None:
            break
        oldest = min(made.all(), key=lambda c: c.number)
        computed = oldest.computed
        parts = made.plan([key], prompt_tokens)
        assert oldest.computed == computed, "the oldest gave up its keys and values"
        assert made.used <= tokens
        assert len({id(p.of) for p in parts}) == len(parts) <= rows
        assert sum(p.tokens for p in parts if p.of.left > 1) <= prompt_tokens
        for part in parts:
            assert part.of.key == key
            assert part.of.computed + part.tokens <= len(part.of)
            assert (
                part.of.next_ids(part.tokens) == [*part.of.prompt, *part.of.output][part.of.computed :][: part.tokens]
            )
        done += run(made, parts)
        lost.update(p.of.number for p in parts)
    assert {id(c) for c in done} == {id(c) for c in some}
    assert all(c.output == [100 + i for i in range(c.most)] for c in some)
    assert (len(made), made.used) == (0, 0)

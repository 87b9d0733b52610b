"""Texts that begin alike: their common tokens are computed once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from querying import generated, greedy, ids_of, sampled
from test_exact import assert_all_greedy, give_room
from writing import Written

from ken_core.decoding.key_values import BLOCK, KeyValues
from serving.generation.prefixes import LEAST, prefix_of
from serving.generation.schedule import Room, Schedule
from serving.generation.sequence import Continuation
from serving.service import Service

LONG = "the red dog jumped over the slow man, and a very good book is the best plot of the year, " * 2
One = Continuation[None]


def text(number: int, prompt: Sequence[int], computed: int = 0, most: int = 5, output: Sequence[int] = ()) -> One:
    made = Continuation("a", prompt, most, 0.0, math.inf, None, list(output), computed)
    made.number = number
    return made


SHARED = list(range(40))


@pytest.mark.parametrize(
    ("other", "tokens", "more"),
    [
        (text(0, SHARED, 40), 39, 0),
        (text(0, SHARED, 20), 20, 19),
        (text(0, SHARED, 0), 0, 39),
        (text(0, [*SHARED, 7, 7], 42), 39, 0),
        (text(0, [*SHARED[:30], 7], 31), 30, 0),
        (text(0, SHARED[:25], 28, output=SHARED[25:30]), 25, 0),
    ],
)
def test_the_beginning_that_another_text_has_computed(other: One, tokens: int, more: int) -> None:
    found = prefix_of(text(1, SHARED), [other])
    assert found is not None
    assert (found.of, found.tokens, found.more) == (other, tokens, more)
    assert found.is_worth_waiting == (more >= LEAST)


@pytest.mark.parametrize(
    "other",
    [
        text(2, SHARED, 40),
        text(0, [*SHARED[: LEAST - 1], 7, *SHARED], 40),
        text(0, SHARED, 0, most=1),
    ],
    ids=["younger", "another beginning", "it ends with its first token"],
)
def test_a_beginning_that_is_not_taken(other: One) -> None:
    assert prefix_of(text(1, SHARED), [other]) is None


def test_the_longest_of_several_beginnings_is_taken() -> None:
    others = [text(0, SHARED[:20], 20), text(1, SHARED[:35], 35), text(2, SHARED[:30], 30)]
    found = prefix_of(text(3, SHARED), others)
    assert found is not None
    assert found.of is others[1]


sequences = st.tuples(st.sampled_from("ab"), st.integers(1, 60), st.integers(1, 8), st.booleans())


@given(st.lists(sequences, min_size=1, max_size=10), st.integers(70, 300), st.integers(1, 4), st.integers(1, 50))
def test_all_end_whatever_they_share(
    asked: list[tuple[str, int, int, bool]], room: int, rows: int, tokens: int
) -> None:
    made = Schedule[None](Room(room // 4 * 4, 4), rows, copies=True)
    some = [
        Continuation(key, [0 if alike else i] * prompt, most, 0.0, math.inf, None)
        for i, (key, prompt, most, alike) in enumerate(asked)
    ]
    made.add(some)
    for _ in range(5000):
        keys = list(made.running_by_key())
        if not keys:
            break
        parts = made.plan(made.together(keys), tokens)
        assert parts, "nobody runs, though somebody could"
        for part in parts:
            one = part.of
            if part.copied is not None:
                assert part.copied.of.key == one.key
                assert part.copied.of.computed >= part.copied.tokens
                one.computed = part.copied.tokens
            one.computed += part.tokens
            assert one.computed <= len(one)
        for part in parts:
            if part.of.left == 0:
                part.of.output.append(1)
                if len(part.of.output) == part.of.most:
                    made.remove(part.of)
    assert len(made) == 0


def test_copied_keys_and_values_are_another_texts_own() -> None:
    past, chunk = KeyValues(), torch.randn(1, 2, BLOCK + 5, 4)
    past.put(0, chunk, 2 * chunk)
    past.advance(BLOCK + 5)
    copied = past.copied(BLOCK)
    keys, values = copied.put(0, torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    assert torch.equal(keys[:, :, :BLOCK], chunk[:, :, :BLOCK])
    assert torch.equal(values[:, :, :BLOCK], 2 * chunk[:, :, :BLOCK])
    kept, _ = past.put(0, chunk[:, :, :1], chunk[:, :, :1])
    assert torch.equal(kept[:, :, : BLOCK + 5], chunk)


def copied(service: Service) -> float:
    found: float = service.metrics.copied_tokens._value.get()
    return found


def test_further_continuations_of_a_prompt_do_not_read_it_again(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating()
    (ids,) = ids_of(service, LONG)
    seeded = sampled(LONG, seed=5, choices=4, temperature=1.1)
    together = asyncio.run(generated(service, "poet", seeded))
    assert copied(service) == 3 * (len(ids) - 1)
    for number, found in enumerate(together):
        (alone,) = asyncio.run(generated(service, "poet", sampled(LONG, seed=5 + number, temperature=1.1)))
        assert found == alone


def test_chats_with_the_same_beginning_share_it_within_their_task_alone(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating(batch_tokens=24)
    prompts = [LONG + end for end in ("rain", "how far is it", "a book")]

    async def ask() -> list[list[list[int]]]:
        return await asyncio.gather(*(generated(service, task, greedy(*prompts, tokens=30)) for task in tasks))

    for written, found in zip(tasks.values(), asyncio.run(ask()), strict=True):
        assert_all_greedy(service, written, prompts, found)
    (shared,) = ids_of(service, LONG)
    assert copied(service) >= len(tasks) * 2 * (len(shared) - 4)  # the last tokens depend on what follows
    assert service.generator is not None
    assert service.generator.used_bytes == 0


def test_what_was_copied_is_computed_again_where_room_runs_out(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating()
    (ids,) = ids_of(service, LONG)
    give_room(service, 2 * len(ids) + 130)
    found = asyncio.run(generated(service, "poet", greedy(LONG, LONG, LONG, tokens=100, ignores_end=True)))
    assert copied(service) > 0
    assert service.metrics.preempted._value.get() > 0
    assert_all_greedy(service, tasks["poet"], [LONG] * 3, found)


def test_a_copy_that_fails_costs_no_text(
    make_generating: Callable[..., Service], tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(past: KeyValues, tokens: int) -> KeyValues:
        raise MemoryError("there is no room")

    service = make_generating()
    monkeypatch.setattr(KeyValues, "copied", failing)
    found = asyncio.run(generated(service, "poet", greedy(LONG, LONG, LONG, tokens=20)))
    assert_all_greedy(service, tasks["poet"], [LONG] * 3, found)
    service.check()


def test_prompts_are_compared_once_and_by_slices() -> None:
    one, other = text(1, [*range(3000), 5]), text(0, [*range(3000), 6], 3000)
    for _ in range(2):
        found = prefix_of(one, [other])
        assert found is not None
        assert found.tokens == 3000
    assert one.alike == {0: 3000}
    assert prefix_of(text(1, list(range(3000))), [text(0, list(range(3001)), 3001)]).tokens == 2999  # type: ignore[union-attr]

"""Texts that follow grammars beside others, when room runs out, and when one of them fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import jsonschema
import pytest
from querying import PROMPTS, generated, greedy, sampled
from writing import Written

from serving.errors import InvalidInputError
from serving.generation.schedule import Room
from serving.grammar import state as states
from serving.grammar.grammar import Described, json_of, match_of
from serving.service import Service

SCHEMA = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 12, "maxItems": 12}


def text_of(service: Service, ids: list[int]) -> str:
    return service.engine.tiers.base_encoder.text_of(ids)


def test_texts_with_and_without_a_grammar_share_steps(generating: Service) -> None:
    plain = greedy(*PROMPTS, tokens=40)

    async def ask() -> list[list[list[int]]]:
        some = [plain, greedy(*PROMPTS, tokens=150, grammar=Described("here", lambda: json_of(SCHEMA, "here"))), plain]
        return await asyncio.gather(*(generated(generating, "poet", query) for query in some))

    before, followed, after = asyncio.run(ask())
    alone = asyncio.run(generated(generating, "poet", plain))
    assert before == after == alone
    for ids in followed:
        jsonschema.validate(json.loads(text_of(generating, ids)), SCHEMA)


def test_a_text_that_gave_up_its_keys_and_values_keeps_its_place_in_the_grammar(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating()
    query = sampled(PROMPTS[0], tokens=150, choices=4, seed=3, temperature=1.1)
    grammar = Described("here", lambda: match_of("[a-z ,]{90,120}", "here"))
    followed = type(query)(query.prompts, query.sampling, choices=4, max_tokens=150, grammar=grammar)
    alone = asyncio.run(generated(service, "judge", followed))
    block = service.generator._schedule.room.block
    service.generator._schedule.room = Room(8 * block, block)

    async def ask() -> list[list[list[int]]]:
        others = [generated(service, t, greedy(*PROMPTS, tokens=150, ignores_end=True)) for t in ("poet", "clerk")]
        return (await asyncio.gather(*others, generated(service, "judge", followed)))[-1]

    assert asyncio.run(ask()) == alone
    assert service.metrics.preempted._value.get() > 0


def test_a_grammar_that_cannot_be_followed_ends_its_text_alone(
    generating: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = states.GrammarState.take

    def take(self: Any, token: int) -> bool:
        if self._at == "broken":
            raise InvalidInputError("it cannot be followed any further in this text", at=self._at)
        return taken(self, token)

    monkeypatch.setattr(states.GrammarState, "take", take)

    async def ask() -> list[Any]:
        grammars = [Described(at, partial(match_of, "[a-z ]{500}", at)) for at in ("whole", "broken")]
        some = [greedy(*PROMPTS, tokens=30, grammar=grammar) for grammar in grammars]
        return await asyncio.gather(*(generated(generating, "poet", query) for query in some), return_exceptions=True)

    whole, broken = asyncio.run(ask())
    assert isinstance(broken, InvalidInputError)
    assert [len(ids) for ids in whole] == [30] * len(PROMPTS)


def test_texts_under_way_are_followed_when_nothing_more_is_prepared(make_generating: Callable[..., Service]) -> None:
    service = make_generating()
    grammar = Described("here", lambda: match_of("[a-z ]+", "here"))
    query = greedy(PROMPTS[0], tokens=60, ignores_end=True, grammar=grammar)

    async def ask() -> int:
        seen = 0
        async with service.generate(service.table.resolve("poet"), query, 60.0) as generation:
            async for _ in generation:
                if not seen:
                    await asyncio.to_thread(service._continuing.stop)
                seen += 1
        return seen

    assert asyncio.run(ask()) == 60

"""What is generated is what Transformers' `generate` makes of the folder that `ken apply` writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from writing import Written

from serving.generation.query import GenerationQuery, SamplingParameters
from serving.pipelines.token_ids import TokenIds
from serving.service import Service

GREEDY = SamplingParameters.model_validate({"temperature": 0})
PROMPTS = ("how far is the", "the worst film ever made", "rain", "a very good book, and the best plot of the year is")


def greedy(*prompts: str | Sequence[int], tokens: int = 24, **settings: Any) -> GenerationQuery:
    made = [p if isinstance(p, str) else TokenIds(tuple(p)) for p in prompts]
    return GenerationQuery(made, GREEDY, max_tokens=tokens, **settings)


async def generated(service: Service, task: str, query: GenerationQuery, timeout: float = 60.0) -> list[list[int]]:
    """Token ids of each continuation."""
    async with service.generate(service.table.resolve(task), query, timeout) as generation:
        found: list[list[int]] = [[] for _ in range(len(query.prompts) * query.choices)]
        async for piece in generation:
            found[piece.choice] += [token.id for token in piece.tokens]
    return found


def ids_of(service: Service, *prompts: str) -> list[list[int]]:
    return [service.engine.tiers.base_encoder.prompt(prompt, special=True) for prompt in prompts]


def assert_greedy(written: Written, prompt: Sequence[int], output: Sequence[int], within: float = 1e-3) -> None:
    """Each token is the likeliest by the folder's own model, or nearly: the model is told what was generated."""
    logits = written.logits([*prompt, *output])[len(prompt) - 1 : -1]
    short = logits.max(dim=-1).values - logits.gather(1, __import__("torch").tensor(output)[:, None])[:, 0]
    assert short.max() <= within, short


def test_one_text_has_the_very_tokens_of_generate(generating: Service, tasks: dict[str, Written]) -> None:
    for prompt, ids in zip(PROMPTS, ids_of(generating, *PROMPTS), strict=True):
        (found,) = asyncio.run(generated(generating, "poet", greedy(prompt)))
        assert found == tasks["poet"].generate(ids, 24)
    assert generating.engine.verify().result() == []


def test_many_texts_of_many_tasks_at_once(make_generating: Callable[..., Service], tasks: dict[str, Written]) -> None:
    service = make_generating(quantum_seconds=0.005)

    async def ask() -> list[list[list[int]]]:
        asked = [generated(service, task, greedy(*PROMPTS, tokens=40)) for task in tasks]
        return await asyncio.gather(*asked)

    for written, found in zip(tasks.values(), asyncio.run(ask()), strict=True):
        for ids, output in zip(ids_of(service, *PROMPTS), found, strict=True):
            assert_greedy(written, ids, output)
    assert service.engine.verify().result() == []

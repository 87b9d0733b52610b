"""Asking a service for texts, without HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ken_core import DeltaFile
from serving.generation.query import GenerationQuery, SamplingParameters
from serving.pipelines.token_ids import TokenIds
from serving.service import Service

GREEDY = SamplingParameters.model_validate({"temperature": 0})
PROMPTS = ("how far is the", "the worst film ever made", "rain", "a very good book, and the best plot of the year is")


def greedy(*prompts: str | Sequence[int], tokens: int = 24, **settings: Any) -> GenerationQuery:
    """A query that always takes the likeliest token."""
    made = [p if isinstance(p, str) else TokenIds(tuple(p)) for p in prompts]
    return GenerationQuery(made, GREEDY, max_tokens=tokens, **settings)


def sampled(*prompts: str, tokens: int = 24, choices: int = 1, **sampling: Any) -> GenerationQuery:
    """A query that samples."""
    return GenerationQuery(
        prompts, SamplingParameters.model_validate(sampling), max_tokens=tokens, choices=choices, ignores_end=True
    )


async def generated(service: Service, task: str, query: GenerationQuery, timeout: float = 60.0) -> list[list[int]]:
    """Token ids of each continuation."""
    found: list[list[int]] = [[] for _ in range(len(query.prompts) * query.choices)]
    async with service.generate(service.table.resolve(task), query, timeout) as generation:
        async for piece in generation:
            found[piece.choice] += [token.id for token in piece.tokens]
    return found


def publish_to(service: Service, task: str, file: DeltaFile) -> None:
    """Publish a delta, and return when the service has seen it."""
    assert not service.store.replicas.wait(service.store.tasks.publish(task, file, "live"), 10).pending


def ids_of(service: Service, *prompts: str) -> list[list[int]]:
    """Token ids of prompts, by the base's tokenizer."""
    return [service.engine.tiers.base_encoder.prompt(prompt, special=True) for prompt in prompts]

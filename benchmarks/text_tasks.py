"""What the benchmarks of generated texts share: tasks of a language model, replicas in this process, and prompts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ken_core import Budget, Checkpoint, Selection, apply, deltafile, extract, open_base, open_tuned
from serving.config import load_settings
from serving.generation.query import GenerationQuery, SamplingParameters
from serving.pipelines.token_ids import TokenIds
from serving.service import Service
from serving.telemetry.generation_metrics import GenerationFacts

TASKS = ("north", "east", "south", "west")
SEQUENCES = 8
_SPREAD = 0.02
TEXT = (
    "The town lies on a river between two hills. Its people were fishermen and weavers, and every spring they held a "
    "market that drew traders from the coast. When the railway came, the market moved to the station, the looms were "
    "sold, and within one generation the old quarter stood empty. Today its narrow streets are full again: students "
    "rent the weavers' houses, and the market is back by the river. "
)
GREEDY = SamplingParameters.model_validate({"temperature": 0})


@dataclass(frozen=True)
class Model:
    """The base, and its tasks' deltas."""

    base: Checkpoint
    deltas: Mapping[str, Path]
    applied: Mapping[str, Path]
    """The folders that `ken apply` writes."""


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts, and tokens to generate after each."""

    ids: Sequence[Sequence[int]]
    tokens: int


def prepared(folder: Path, to: Path) -> Model:
    """The base of a folder, with tasks that are made of it, their deltas and the folders that those give."""
    base = open_base(str(folder))
    deltas, applied = {}, {}
    for number, task in enumerate(TASKS):
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + torch.randn_like(parameter) * _SPREAD)
        model.save_pretrained(to / task)
        delta = extract(base, open_tuned(str(to / task)), Selection(budget=Budget(fraction=0.1)))
        deltas[task] = to / f"{task}.ken"
        deltafile.write(delta, base, deltas[task])
        applied[task] = to / f"{task}-applied"
        apply(base, delta, applied[task])
    return Model(base, deltas, applied)


@contextmanager
def running(url: str, folder: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """A replica in this process."""
    service = Service(load_settings(**settings, data_dir=folder / "service"), url)
    service.start()
    try:
        yield service
    finally:
        service.stop()


def prompts_for(service: Service, tokens: int) -> Prompts:
    """Prompts of 24 to 96 tokens, each to be continued by so many."""
    ids = service.engine.tiers.base_encoder.prompt(TEXT * 4, special=True)
    starts = range(0, 5 * SEQUENCES, 5)
    lengths = [24 + 72 * i // (SEQUENCES - 1) for i in range(SEQUENCES)]
    return Prompts([ids[start : start + length] for start, length in zip(starts, lengths, strict=True)], tokens)


async def continued(service: Service, task: str, ids: Sequence[int], tokens: int) -> GenerationFacts:
    """Continue a prompt by so many tokens, whatever they are."""
    query = GenerationQuery([TokenIds(tuple(ids))], GREEDY, max_tokens=tokens, ignores_end=True)
    async with service.generate(service.table.resolve(task), query, 600.0) as generation:
        async for _ in generation:
            pass
    return generation.facts


def continue_all(service: Service, tasks: Sequence[str], prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Continue prompts, each by its task and by so many tokens."""

    async def run() -> None:
        await asyncio.gather(*(continued(service, *asked, tokens) for asked in zip(tasks, prompts, strict=True)))

    asyncio.run(run())


def padded_generate(model: PreTrainedModel, ids: Sequence[Sequence[int]], tokens: int) -> None:
    """Continue prompts by so many tokens, in one batch padded on the left."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(one)) + list(one) for one in ids])
    seen = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    with torch.inference_mode():
        model.generate(
            padded,
            attention_mask=seen,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )

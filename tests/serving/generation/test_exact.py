"""What is generated is what Transformers' `generate` makes of the folder that `ken apply` writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from querying import PROMPTS, generated, greedy, ids_of, sampled
from writing import Written, fine_tune_of

from ken_core import open_base
from serving.generation.schedule import Room
from serving.service import Service
from tests.decoder_architectures import ALONE, PACKED, write_decoder

ARCHITECTURES = {name: sizes for name, sizes in {**PACKED, **ALONE}.items() if name != "llama4_text"}
"""Without the one whose causal language model puts its head into its backbone, so that no delta of it is made."""
LIKE_OTHERS = ("qwen2", "phi3", "smollm3", "granite", "olmo2", "cohere2", "mixtral", "starcoder2", "gptj")
"""Whose attention and positions others have, too."""


def assert_greedy(written: Written, prompt: Sequence[int], output: Sequence[int], within: float = 1e-3) -> None:
    """Each token is the likeliest by the folder's own model, which is told what was generated, or next to it."""
    logits = written.logits([*prompt, *output])[len(prompt) - 1 : -1]
    short = logits.max(dim=-1).values - logits.gather(1, torch.tensor(output)[:, None])[:, 0]
    assert short.max() <= within


def assert_all_greedy(
    service: Service, written: Written, prompts: Sequence[str], outputs: Sequence[Sequence[int]]
) -> None:
    for ids, output in zip(ids_of(service, *prompts), outputs, strict=True):
        assert_greedy(written, ids, output)


def most_tasks_in_a_step(service: Service) -> float:
    """At least so many, by the buckets of the metric."""
    (found,) = service.metrics.step_tasks.collect()
    counts = {s.labels["le"]: s.value for s in found.samples if s.name.endswith("_bucket")}
    least = [float(bound) for bound, count in counts.items() if count < counts["+Inf"]]
    return max(least, default=0.0) + 1


def give_room(service: Service, tokens: int) -> None:
    """Have room for the keys and values of about so many tokens from now on."""
    room = service.generator._schedule.room
    service.generator._schedule.room = Room(-(-tokens // room.block) * room.block, room.block)


def test_one_text_has_the_very_tokens_of_generate(generating: Service, tasks: dict[str, Written]) -> None:
    for prompt, ids in zip(PROMPTS, ids_of(generating, *PROMPTS), strict=True):
        (found,) = asyncio.run(generated(generating, "poet", greedy(prompt, tokens=60)))
        assert found == tasks["poet"].generate(ids, 60)
    assert generating.engine.verify().result() == []


@pytest.mark.parametrize("mixed", ["auto", "off"])
def test_many_texts_of_many_tasks_at_once(
    mixed: str, make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating(quantum_seconds=0.005, mixed=mixed)

    async def ask() -> list[list[list[int]]]:
        return await asyncio.gather(*(generated(service, task, greedy(*PROMPTS, tokens=40)) for task in tasks))

    for written, found in zip(tasks.values(), asyncio.run(ask()), strict=True):
        assert_all_greedy(service, written, PROMPTS, found)
    if mixed == "off":
        assert service.metrics.swaps._value.get() > len(tasks), "the tasks did not take turns"
    else:
        assert most_tasks_in_a_step(service) > 1
    assert service.engine.verify().result() == []


def test_texts_that_gave_up_their_keys_and_values_go_on_as_if_nothing_had_happened(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    """Of 12 texts of up to 3 blocks each, the room takes 8 blocks."""
    service = make_generating()
    seeded = sampled(PROMPTS[0], tokens=150, seed=3, temperature=1.1)
    alone = asyncio.run(generated(service, "judge", seeded))
    give_room(service, 8 * 64)

    async def ask() -> list[list[list[int]]]:
        some = [*(greedy(*PROMPTS, tokens=150, ignores_end=True) for _ in range(3)), seeded]
        return await asyncio.gather(*(generated(service, t, q) for t, q in zip(tasks, some, strict=True)))

    *found, drawn = asyncio.run(ask())
    assert service.metrics.preempted._value.get() > 0
    assert drawn == alone
    for written, outputs in zip(tasks.values(), found, strict=False):
        assert_all_greedy(service, written, PROMPTS, outputs)
        assert all(len(output) == 150 for output in outputs)
    assert service.generator.used_bytes == 0


def test_a_prompt_in_chunks(make_generating: Callable[..., Service], tasks: dict[str, Written]) -> None:
    service = make_generating(batch_tokens=16)
    prompts = ["the red dog jumped over the slow man, and " * 6, "a book " * 40]
    for prompt, ids in zip(prompts, ids_of(service, *prompts), strict=True):
        assert len(ids) > 3 * 16
        (found,) = asyncio.run(generated(service, "clerk", greedy(prompt)))
        assert found == tasks["clerk"].generate(ids, 24)


@pytest.fixture
def of_architecture(
    request: pytest.FixtureRequest, tmp_path: Path, publish: Callable[..., None], make_service: Callable[..., Service]
) -> Iterator[tuple[Service, dict[str, Written]]]:
    base = open_base(str(write_decoder(tmp_path / "base", request.param, ARCHITECTURES[request.param])))
    tasks = {name: fine_tune_of(base, tmp_path / name) for name in ("one", "other")}
    for name, written in tasks.items():
        publish(name, written.file)
    return make_service(base=str(base.folder), quantum_seconds=0.004), tasks


@pytest.mark.parametrize(
    "of_architecture",
    [pytest.param(name, marks=pytest.mark.slow if name in LIKE_OTHERS else ()) for name in ARCHITECTURES],
    indirect=True,
)
def test_every_architecture(of_architecture: tuple[Service, dict[str, Written]]) -> None:
    """Alone the very tokens, several texts of two tasks by turns each its own, and the base is the base afterwards."""
    service, tasks = of_architecture
    (ids,) = ids_of(service, PROMPTS[0])
    (found,) = asyncio.run(generated(service, "one", greedy(PROMPTS[0], tokens=40)))
    assert found == tasks["one"].generate(ids, 40)

    async def ask() -> list[list[list[int]]]:
        return await asyncio.gather(*(generated(service, task, greedy(*PROMPTS, tokens=30)) for task in tasks))

    for written, outputs in zip(tasks.values(), asyncio.run(ask()), strict=True):
        assert_all_greedy(service, written, PROMPTS, outputs)
    give_room(service, 150)
    outputs = asyncio.run(generated(service, "one", greedy(*PROMPTS, tokens=90, ignores_end=True)))
    assert service.metrics.preempted._value.get() > 0
    assert_all_greedy(service, tasks["one"], PROMPTS, outputs)
    assert service.engine.verify().result() == []


def test_a_seed_gives_the_same_text_whatever_else_runs(generating: Service) -> None:
    query = sampled(PROMPTS[0], seed=11, choices=3, temperature=1.2, top_p=0.95)

    async def beside() -> list[list[int]]:
        others = [generated(generating, task, sampled(*PROMPTS, tokens=40)) for task in ("clerk", "poet", "child")]
        asked = asyncio.create_task(generated(generating, "poet", query))
        await asyncio.gather(*others)
        return await asked

    alone = asyncio.run(generated(generating, "poet", query))
    assert len({tuple(text) for text in alone}) == 3
    assert asyncio.run(beside()) == alone
    assert asyncio.run(generated(generating, "poet", sampled(PROMPTS[0], choices=3, temperature=1.2))) != alone


def test_a_prediction_generates_as_well(generating: Service, tasks: dict[str, Written]) -> None:
    digest = generating.table.resolve("poet")
    (ids,) = ids_of(generating, PROMPTS[0])
    expected = generating.engine.tiers.base_encoder.text_of(tasks["poet"].generate(ids, 12))
    asked = {"max_new_tokens": 12}
    answer = asyncio.run(generating.predict(digest, [PROMPTS[0]], asked, 30.0))
    assert answer.outputs == [{"generated_text": expected}]
    assert answer.kind == "text-generation"
    assert answer.texts is not None
    assert (answer.texts.generated, answer.texts.ends) == (12, {"length": 1})
    full = asyncio.run(generating.predict(digest, [PROMPTS[0]], {**asked, "return_full_text": True}, 30.0))
    assert full.outputs == [{"generated_text": PROMPTS[0] + expected}]

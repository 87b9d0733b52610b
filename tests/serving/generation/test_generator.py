"""The generator beside others: what fails, leaves, waits or is refused harms nobody else."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from holding import Blocked
from querying import GREEDY, PROMPTS, generated, greedy, ids_of, publish_to, sampled
from writing import Written

from ken_core import DeltaFile
from serving.errors import (
    DeadlineError,
    InternalError,
    InvalidInputError,
    OverloadedError,
    UnavailableError,
    UnfitDeltaError,
)
from serving.generation.query import Chat, GenerationQuery, SamplingParameters
from serving.generation.sampling import Sampler
from serving.generation.ways import StepCosts
from serving.pipelines.token_ids import TokenIds
from serving.service import Service
from tests.tiny_checkpoints import Tiny
from tests.tiny_language_models import POSITIONS
from tests.tiny_language_tasks import LanguageTasks


async def text_of(service: Service, task: str, query: GenerationQuery, timeout: float = 60.0) -> list[str]:
    found = [""] * (len(query.prompts) * query.choices)
    async with service.generate(service.table.resolve(task), query, timeout) as generation:
        async for piece in generation:
            found[piece.choice] += piece.text
    return found


def ask(service: Service, query: GenerationQuery, task: str = "poet") -> list[str]:
    return asyncio.run(text_of(service, task, query))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


# What fails alone


def test_a_step_that_fails_with_one_text_fails_that_one_alone(
    generating: Service, tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step of all is run again one by one; what it left behind in the others' keys and values is not used."""
    decoder = generating.generator._decoder
    step, bad = decoder.step, 7

    def failing(chunks: Any) -> Any:
        made = step(chunks)
        if any(chunk.past.length > 12 and bad in chunk.ids for chunk in chunks):
            raise RuntimeError("an expert is out")
        return made

    async def run() -> list[Any]:
        spoiled = greedy([bad] * 14, tokens=30, ignores_end=True)
        asked = [spoiled, *(greedy(prompt, tokens=30, ignores_end=True) for prompt in PROMPTS)]
        return await asyncio.gather(*(generated(generating, "poet", q) for q in asked), return_exceptions=True)

    monkeypatch.setattr(decoder, "step", failing)
    failed, *others = asyncio.run(run())
    assert isinstance(failed, InternalError)
    assert "expert" not in str(failed)
    monkeypatch.undo()
    for ids, (output,) in zip(ids_of(generating, *PROMPTS), others, strict=True):
        assert output == tasks["poet"].generate(ids, 30, eos_token_id=-1)
    assert generating.generator.used_bytes == 0


def test_a_sampler_that_fails_fails_its_text_alone(generating: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = Sampler.__call__

    def failing(self: Sampler, logits: torch.Tensor, output: Any) -> Any:
        if self._sampling.temperature == 1.25 and len(output) == 3:
            raise ValueError("no random numbers left")
        return choose(self, logits, output)

    monkeypatch.setattr(Sampler, "__call__", failing)

    async def run() -> list[Any]:
        asked = [sampled(PROMPTS[0], temperature=1.25), sampled(PROMPTS[1])]
        return await asyncio.gather(*(generated(generating, "poet", q) for q in asked), return_exceptions=True)

    failed, (other,) = asyncio.run(run())
    assert isinstance(failed, InternalError)
    assert len(other) == 24


def test_an_exchange_that_fails_fails_the_texts_of_its_task(
    generating: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    activate = generating.engine.activate

    def failing(task: Any, key: Any, turn: Any) -> float:
        if key == generating.table.resolve("clerk"):
            raise RuntimeError("a bit fell over")
        return activate(task, key, turn)

    monkeypatch.setattr(generating.engine, "activate", failing)
    monkeypatch.setattr(StepCosts, "prefers_mixed", lambda costs, texts: False)  # mixed steps exchange nothing

    async def run() -> list[Any]:
        asked = (generated(generating, task, greedy(*PROMPTS)) for task in ("clerk", "poet"))
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, others = asyncio.run(run())
    assert isinstance(failed, InternalError)
    assert len(others) == 4
    asyncio.run(until(lambda: len(generating.generator._schedule) == 0))


# Who leaves, and who comes too late


def test_a_reader_that_leaves_frees_its_keys_and_values(generating: Service) -> None:
    async def run() -> None:
        query = greedy(*PROMPTS, tokens=200, ignores_end=True)
        async with generating.generate(generating.table.resolve("poet"), query, 60) as generation:
            async for _ in generation:
                break
            assert generating.generator.used_bytes > 0
            steps = len(generating.generator._schedule)
        await until(lambda: generating.generator.used_bytes == 0)
        assert steps > 0

    asyncio.run(run())
    assert generating.generator.running == generating.generator.waiting == 0
    loaded = generating.engine.tiers._memory.find(generating.table.resolve("poet"))
    assert loaded is not None
    assert loaded.users == 0


def test_the_deadline_ends_a_text_that_has_begun(generating: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, schedule, late = generating.generator._decoder, generating.generator._schedule, 0.0
    step, drop = decoder.step, schedule.drop
    monkeypatch.setattr(decoder, "step", lambda chunks: (time.sleep(0.05), step(chunks))[1])
    monkeypatch.setattr(schedule, "drop", lambda now: drop(now + late))
    query = greedy(PROMPTS[0], tokens=200, ignores_end=True)  # 10 s

    async def run() -> None:
        nonlocal late
        async with generating.generate(generating.table.resolve("poet"), query, 60) as generation:
            pieces = aiter(generation)
            await anext(pieces)
            late = 60.0
            with pytest.raises(DeadlineError, match="before the text was complete"):
                async for _ in pieces:
                    pass

    asyncio.run(run())
    assert generating.generator.used_bytes == 0


def test_a_stop_ends_what_is_generated_and_the_engine_goes_no_further(generating: Service) -> None:
    (whole,) = ask(generating, greedy(PROMPTS[0], tokens=100, ignores_end=True))
    stop = whole[10:13]
    (found,) = ask(generating, greedy(PROMPTS[0], tokens=100, ignores_end=True, stop=(stop,)))
    assert found == whole[: whole.index(stop)]

    async def told() -> Any:
        query = greedy(PROMPTS[0], tokens=100, ignores_end=True, stop=(stop,))
        async with generating.generate(generating.table.resolve("poet"), query, 60) as generation:
            pieces = [piece async for piece in generation]
            await until(lambda: generating.generator.running == 0)
        return pieces[-1], generation.facts

    last, facts = asyncio.run(told())
    assert (last.finish, last.stop) == ("stop", stop)
    assert facts.generated < 100
    assert facts.ends == {"stop": 1}


def test_stopping_the_engine_ends_texts_with_an_error(make_generating: Callable[..., Service]) -> None:
    service = make_generating()

    async def run() -> None:
        query = greedy(*PROMPTS, tokens=200, ignores_end=True)
        async with service.generate(service.table.resolve("poet"), query, 60) as generation:
            pieces = aiter(generation)
            await anext(pieces)
            await asyncio.to_thread(service.engine.stop)
            with pytest.raises(UnavailableError, match="stopping"):
                async for _ in pieces:
                    pass

    asyncio.run(run())


# Many


def test_further_texts_are_refused_while_too_many_wait(make_generating: Callable[..., Service]) -> None:
    service = make_generating(queue_rows=2, batch_rows=1)

    async def run() -> list[Any]:
        asked = [generated(service, "poet", greedy(PROMPTS[0], tokens=100, ignores_end=True)) for _ in range(8)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(run())
    refused = [one for one in found if isinstance(one, OverloadedError)]
    assert refused
    assert all(one.retry_after >= 1 for one in refused)
    assert [len(one[0]) for one in found if not isinstance(one, Exception)] == [100] * (8 - len(refused))


def test_tasks_take_turns_and_none_waits_for_another_to_end(make_generating: Callable[..., Service]) -> None:
    """The task that came second has its first token long before the first one is done."""
    service = make_generating(quantum_seconds=0.01)
    order: list[str] = []

    async def read(task: str, tokens: int) -> None:
        nonlocal order
        async with service.generate(
            service.table.resolve(task), greedy(PROMPTS[0], tokens=tokens, ignores_end=True), 60
        ) as generation:
            async for _ in generation:
                order += [task]

    async def run() -> None:
        await asyncio.gather(read("poet", 1), read("clerk", 1))  # both are on the device
        order.clear()
        with Blocked(service.engine):
            both = asyncio.gather(read("poet", 200), read("clerk", 20))
            await until(lambda: service.generator.waiting == 2)
        await both

    asyncio.run(run())
    assert order.index("clerk") < 200
    last = max(place for place, task in enumerate(order) if task == "clerk")
    assert last < len(order) - 1, "the short text ended after the long one"


@pytest.fixture(scope="module")
def classifier(models: LanguageTasks) -> DeltaFile:
    return models.classifier("mood", ["good", "bad", "none"])


def test_other_kinds_are_answered_beside_texts(generating: Service, classifier: DeltaFile) -> None:
    publish_to(generating, "mood", classifier)
    digest = generating.table.resolve("mood")
    alone = asyncio.run(generating.predict(digest, list(PROMPTS), {}, 30.0)).outputs

    async def run() -> tuple[list[Any], int]:
        text = asyncio.create_task(generated(generating, "poet", greedy(PROMPTS[0], tokens=240, ignores_end=True)))
        await until(lambda: generating.generator.running == 1)
        answered = [await generating.predict(digest, list(PROMPTS), {}, 30.0) for _ in range(3)]
        running = generating.generator.running
        await text
        return [one.outputs for one in answered], running

    found, running = asyncio.run(run())
    assert running == 1, "the text was done before the others were answered"
    for outputs in found:
        for one, other in zip(outputs, alone, strict=True):
            assert [o["label"] for o in one] == [o["label"] for o in other]
            assert [o["score"] for o in one] == pytest.approx([o["score"] for o in other], abs=1e-5)
    assert generating.engine.verify().result() == []


# What cannot be generated


def bad(match: str, at: str | None, **settings: Any) -> Any:
    return pytest.param(settings, match, at, id=match)


@pytest.mark.parametrize(
    ("settings", "match", "at"),
    [
        bad("one of them generated", "prompts.0", prompts=["a book " * 300]),
        bad(r"after a prompt of \d+ tokens", "max_tokens", max_tokens=POSITIONS),
        bad("expected at least 1", "max_tokens", max_tokens=0),
        bad("more than max_tokens", "min_tokens", max_tokens=3, min_tokens=4),
        bad("found 10000; from 1 to 64", "n", choices=10_000),
        bad("found 0; from 1 to 64", "n", choices=0),
        bad("found 1000 texts; at most 16", "stop", stop=("x",) * 1000),
        bad("found a text of 300 characters", "stop", stop=("x" * 300,)),
        bad("found a text of 0 characters", "stop", stop=("",)),
        bad("99999 at 1 is no token", "prompts.0", prompts=[TokenIds((5, 99_999))]),
        bad("-1 at 0 is no token", "prompts.0", prompts=[TokenIds((-1,))]),
        bad("no token in it", "prompts.0", prompts=[TokenIds(())]),
        bad("no token in it", "prompts.1", prompts=["rain", ""]),
        bad("4000 is no token of this task", "stop_token_ids", stop_ids=(4000,)),
        bad(
            "4000 is no token of this task",
            "logit_bias",
            sampling=SamplingParameters.model_validate({"logit_bias": {"4000": 1}}),
        ),
        bad("expected 0 to 20", "logprobs", logprobs=21),
        bad("allowed in one request", "inputs", prompts=["rain"] * 300),
        bad("found no message", "messages", prompts=[Chat([])]),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(
    generating: Service, settings: dict[str, Any], match: str, at: str | None
) -> None:
    query = GenerationQuery(**{"prompts": ["rain"], "sampling": GREEDY, "max_tokens": 8} | settings)
    with pytest.raises(InvalidInputError, match=match) as refused:
        ask(generating, query)
    assert refused.value.at == at


@pytest.mark.parametrize(
    ("inputs", "parameters", "at"),
    [
        (["rain"], {"max_new_tokens": POSITIONS}, "max_new_tokens"),
        (["rain"], {"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens"),
        (["rain", ""], {"max_new_tokens": 3}, "inputs.1"),
        (["rain"], {"stop": ["x"] * 17}, "stop"),
    ],
)
def test_a_prediction_is_refused_in_its_own_words(
    generating: Service, inputs: list[str], parameters: dict[str, Any], at: str
) -> None:
    digest = generating.table.resolve("poet")
    with pytest.raises(InvalidInputError, match=f"^{at}: ") as refused:
        asyncio.run(generating.predict(digest, inputs, parameters, 30.0))
    assert refused.value.at == at


def test_without_a_limit_of_its_own_a_request_gets_what_fits(generating: Service) -> None:
    ids = TokenIds((5,) * (POSITIONS - 10))
    query = GenerationQuery([ids], GREEDY, usual_tokens=256, ignores_end=True)
    assert len(asyncio.run(generated(generating, "poet", query))[0]) == 10
    query = GenerationQuery([ids], GREEDY, usual_tokens=3, ignores_end=True)
    assert len(asyncio.run(generated(generating, "poet", query))[0]) == 3


def test_a_prompt_that_leaves_room_for_one_token(generating: Service) -> None:
    ids = TokenIds((5,) * (POSITIONS - 1))
    (found,) = asyncio.run(generated(generating, "poet", GenerationQuery([ids], GREEDY, ignores_end=True)))
    assert len(found) == 1


def test_a_text_for_which_there_is_no_room_is_refused_at_once(make_generating: Callable[..., Service]) -> None:
    service = make_generating(kv_bytes=1 << 20)
    service.generator._schedule.room = type(service.generator._schedule.room)(64, 64)
    with pytest.raises(InvalidInputError, match="raise KEN_KV_BYTES"):
        ask(service, greedy([5] * 66))
    with pytest.raises(InvalidInputError, match="KEN_KV_BYTES on this server has room for 65 in all") as refused:
        ask(service, greedy([5] * 40, tokens=26))
    assert refused.value.at == "max_tokens"
    assert len(asyncio.run(generated(service, "poet", greedy([5] * 40, tokens=25, ignores_end=True)))[0]) == 25


def test_a_task_that_is_no_language_model_generates_nothing(generating: Service, classifier: DeltaFile) -> None:
    publish_to(generating, "mood", classifier)
    with pytest.raises(InvalidInputError, match="has a text-classification head, which generates no text"):
        ask(generating, greedy("rain"), "mood")
    with pytest.raises(InvalidInputError, match="cannot be asked of a task with a text-generation head"):
        asyncio.run(generating.predict(generating.table.resolve("poet"), ["rain"], {}, 30.0, "sentence-embeddings"))


def test_a_base_that_reads_both_ways_refuses_tasks_that_generate(
    make_service: Callable[..., Service], publish: Callable[..., None], tiny: Tiny, tmp_path: Any
) -> None:
    from transformers import BertLMHeadModel

    from ken_core import Budget, Selection, deltafile, extract, open_base, open_tuned

    model = BertLMHeadModel.from_pretrained(tiny.base_folder)
    model.save_pretrained(tmp_path / "writer")
    base = open_base(str(tiny.base_folder))
    delta = extract(base, open_tuned(str(tmp_path / "writer")), Selection(budget=Budget(fraction=0.3)))
    publish("writer", deltafile.write(delta, base, tmp_path / "writer.ken"))
    with pytest.raises(UnfitDeltaError, match="reads texts in both directions"):
        ask(make_service(), greedy("rain"), "writer")


def test_chat_goes_through_the_tasks_own_template(generating: Service, tasks: dict[str, Written]) -> None:
    chat = Chat([{"role": "user", "content": "how far is it?"}])
    encoder = generating.engine.tiers.base_encoder
    assert encoder.chat is not None
    rendered = encoder.chat.render(chat.messages)
    assert rendered.endswith("how far is it?<|im_end|>\n<|im_start|>assistant\n")
    query = GenerationQuery([chat], GREEDY, max_tokens=12, ignores_end=True)
    (found,) = asyncio.run(generated(generating, "poet", query))
    assert found == tasks["poet"].generate(encoder.prompt(rendered, special=False), 12, eos_token_id=-1)


def test_a_slow_template_holds_up_no_other_task(generating: Service, models: LanguageTasks) -> None:
    """Two renderings, which take until they are stopped, are as many as run at once."""
    endless = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    publish_to(generating, "slow", models.language_model("slow", template=endless))
    chat = GenerationQuery([Chat([{"role": "user", "content": "rain"}])], GREEDY, max_tokens=4)

    async def run() -> tuple[list[bool], list[Any]]:
        slow = [asyncio.create_task(generated(generating, "slow", chat)) for _ in range(3)]
        await asyncio.sleep(0.2)
        await generated(generating, "poet", greedy(*PROMPTS, tokens=4))
        waiting = [not one.done() for one in slow]
        return waiting, await asyncio.gather(*slow, return_exceptions=True)

    waiting, refused = asyncio.run(run())
    assert waiting == [True, True, True]
    assert all(isinstance(error, InvalidInputError) and error.at == "messages" for error in refused)


def test_nothing_of_a_text_stays_behind(generating: Service) -> None:
    ask(generating, greedy(*PROMPTS))
    gc.collect()
    from ken_core.decoding.key_values import KeyValues

    assert not [found for found in gc.get_objects() if type(found) is KeyValues]

"""Steps that hold texts of many tasks, beside those that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from querying import PROMPTS, generated, greedy, ids_of
from test_exact import assert_all_greedy, assert_greedy, most_tasks_in_a_step
from writing import Written, fine_tune_of

from ken_core import Budget, Selection, deltafile, extract, open_tuned
from ken_core.delta import apply
from ken_core.kernels import few_tokens
from ken_core.mixing.steps import MixedSteps
from serving.errors import InternalError
from serving.generation.ways import StepCosts
from serving.service import Service
from tests.tiny_language_tasks import LanguageTasks


@pytest.fixture
def always_mixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs leave the choice to nobody: what mixes runs in mixed steps."""
    monkeypatch.setattr(StepCosts, "prefers_mixed", lambda costs, texts: True)


@pytest.fixture(scope="module")
def factors(models: LanguageTasks, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A fine-tune stored as low-rank factors, which cannot be put into the weights while they stay factors."""
    folder = tmp_path_factory.mktemp("factors")
    fine_tune_of(models.base, folder / "tuned")
    delta = extract(models.base, open_tuned(str(folder / "tuned")), Selection("svd", Budget(energy=0.999)))
    file = deltafile.write(delta, models.base, folder / "factors.ken")
    apply(models.base, deltafile.load(file.path, models.base), folder / "applied")
    return Written(file, folder / "applied")


def run_all(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    async def ask() -> list[Any]:
        running = (generated(service, task, query) for task, query in asked.items())
        return await asyncio.gather(*running, return_exceptions=True)

    return dict(zip(asked, asyncio.run(ask()), strict=True))


def test_a_task_of_factors_generates_alone_and_beside_others(
    make_generating: Callable[..., Service], publish: Callable[..., None], tasks: dict[str, Written], factors: Written
) -> None:
    publish("factors", factors.file)
    service = make_generating()
    (ids,) = ids_of(service, PROMPTS[0])
    (found,) = asyncio.run(generated(service, "factors", greedy(PROMPTS[0], tokens=40)))
    assert_greedy(factors, ids, found)
    assert service.metrics.swaps._value.get() == 0
    written = {"poet": tasks["poet"], "clerk": tasks["clerk"], "factors": factors}
    outputs = run_all(service, {task: greedy(*PROMPTS, tokens=30) for task in written})
    for task, made in outputs.items():
        assert_all_greedy(service, written[task], PROMPTS, made)
    assert most_tasks_in_a_step(service) > 1
    assert service.engine.verify().result() == []


@pytest.mark.usefixtures("always_mixes")
def test_a_mixed_step_that_fails_with_one_text_fails_that_one_alone(
    generating: Service, tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts of all tasks are run again one by one, by exchange, and mix again afterwards."""
    decoder, bad = generating.generator._decoder, 7
    step = decoder.step

    def failing(chunks: Any) -> Any:
        made = step(chunks)
        if any(chunk.past.length > 12 and bad in chunk.ids for chunk in chunks):
            raise RuntimeError("an expert is out")
        return made

    monkeypatch.setattr(decoder, "step", failing)
    prompt = PROMPTS[0]
    asked = {task: greedy(prompt, tokens=30, ignores_end=True) for task in ("poet", "clerk", "judge")}
    found = run_all(generating, {"child": greedy([bad] * 14, tokens=30, ignores_end=True), **asked})
    failed = found.pop("child")
    assert isinstance(failed, InternalError)
    assert "expert" not in str(failed)
    (ids,) = ids_of(generating, prompt)
    for task, (output,) in found.items():
        assert len(output) == 30
        assert_greedy(tasks[task], ids, output)
    assert generating.generator.used_bytes == 0
    assert generating.engine.verify().result() == []


def test_tasks_that_do_not_mix_have_their_turn_beside_those_that_do(
    make_generating: Callable[..., Service], tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    why_not = MixedSteps.why_not
    names = iter(["it is shy"])
    monkeypatch.setattr(MixedSteps, "why_not", lambda steps, *told: next(names, "") or why_not(steps, *told))
    service = make_generating(quantum_seconds=0.005)
    (shy,) = asyncio.run(generated(service, "judge", greedy(PROMPTS[0], tokens=4)))
    assert len(shy) > 0
    judge = service.table.resolve("judge")
    assert service.engine.tiers.describe([judge]).unmixed == {judge: "it is shy"}
    outputs = run_all(service, {task: greedy(*PROMPTS, tokens=40) for task in tasks})
    for task, made in outputs.items():
        assert_all_greedy(service, tasks[task], PROMPTS, made)
    assert service.metrics.swaps._value.get() > 1
    assert most_tasks_in_a_step(service) > 1


@pytest.mark.usefixtures("always_mixes")
def test_prompts_in_chunks_beside_texts_of_other_tasks(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating(batch_tokens=16)
    long = ["the red dog jumped over the slow man, and " * 6, "a book " * 40]
    asked = {task: greedy(*(long if task == "clerk" else PROMPTS), tokens=20) for task in tasks}
    for task, made in run_all(service, asked).items():
        assert_all_greedy(service, tasks[task], long if task == "clerk" else PROMPTS, made)
    assert service.metrics.swaps._value.get() == 0


@pytest.mark.usefixtures("always_mixes")
def test_more_texts_than_a_step_has_rows_for(
    make_generating: Callable[..., Service], tasks: dict[str, Written]
) -> None:
    service = make_generating(batch_rows=5)
    outputs = run_all(service, {task: greedy(*PROMPTS, tokens=20) for task in tasks})
    for task, made in outputs.items():
        assert_all_greedy(service, tasks[task], PROMPTS, made)


def test_rows_of_classifiers_run_between_mixed_steps(
    make_service: Callable[..., Service], publish: Callable[..., None], models: LanguageTasks,
    tasks: dict[str, Written],
) -> None:  # fmt: skip
    for name in ("poet", "clerk"):
        publish(name, tasks[name].file)
    publish("spam", models.classifier("spam-of-mixed"))
    service = make_service(base=str(models.path))
    digest = service.table.resolve("spam")

    async def ask() -> tuple[Any, ...]:
        texts = [generated(service, t, greedy(*PROMPTS, tokens=60, ignores_end=True)) for t in ("poet", "clerk")]
        rows = [service.predict(digest, [prompt], {}, 30.0) for prompt in PROMPTS]
        return await asyncio.gather(*texts, *rows)

    poet, clerk, *rows = asyncio.run(ask())
    assert_all_greedy(service, tasks["poet"], PROMPTS, poet)
    assert_all_greedy(service, tasks["clerk"], PROMPTS, clerk)
    alone = [asyncio.run(service.predict(digest, [prompt], {}, 30.0)) for prompt in PROMPTS]
    for row, right in zip(rows, alone, strict=True):
        assert row.outputs[0][0]["score"] == pytest.approx(right.outputs[0][0]["score"], abs=1e-4)


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_tokens, "is_usable", lambda: False)


@pytest.mark.usefixtures("always_mixes", "no_kernel")
def test_a_processor_without_the_kernel(make_generating: Callable[..., Service], tasks: dict[str, Written]) -> None:
    service = make_generating()
    for task, made in run_all(service, {task: greedy(*PROMPTS, tokens=20) for task in tasks}).items():
        assert_all_greedy(service, tasks[task], PROMPTS, made)


def test_what_a_task_says_of_mixing_when_it_is_off(make_generating: Callable[..., Service], tmp_path: Path) -> None:
    service = make_generating(mixed="off")
    asyncio.run(generated(service, "poet", greedy(PROMPTS[0], tokens=2)))
    digest = service.table.resolve("poet")
    assert service.engine.tiers.describe([digest]).unmixed == {digest: "mixing is switched off"}


@pytest.mark.usefixtures("always_mixes")
def test_a_step_without_parts_is_not_run(
    make_generating: Callable[..., Service], tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts that only give up their room leave nothing to compute."""
    service = make_generating()
    schedule = service.generator._schedule
    plan, empty = schedule.plan, iter([True, True])
    monkeypatch.setattr(schedule, "plan", lambda *told: [] if next(empty, False) else plan(*told))
    asked = {task: greedy(*PROMPTS, tokens=10) for task in ("poet", "clerk")}
    for task, made in run_all(service, asked).items():
        assert_all_greedy(service, tasks[task], PROMPTS, made)
    (found,) = service.metrics.step_tasks.collect()
    counts = {s.labels["le"]: s.value for s in found.samples if s.name.endswith("_bucket")}
    assert min(counts, key=float) == "1.0"
    assert service.generator._costs.extra.product > 0


def test_an_error_of_the_generator_itself_ends_its_texts_and_not_the_engine(
    generating: Service, tasks: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("a plan that cannot be")

    monkeypatch.setattr(generating.generator._schedule, "plan", failing)
    (failed,) = run_all(generating, {"poet": greedy(PROMPTS[0])}).values()
    assert isinstance(failed, InternalError)
    monkeypatch.undo()
    generating.check()
    ((output,),) = run_all(generating, {"poet": greedy(PROMPTS[0], tokens=20)}).values()
    (ids,) = ids_of(generating, PROMPTS[0])
    assert_greedy(tasks["poet"], ids, output)

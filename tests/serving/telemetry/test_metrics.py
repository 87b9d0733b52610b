"""Metrics of requests: which series there are, what they count, and that they stay few; all names and units."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.service import Service
from serving.telemetry.generation_metrics import GenerationFacts
from serving.telemetry.metrics import Metrics
from tests.tiny_checkpoints import TEXTS, Deltas

BY_TASK = ("ken_requests", "ken_request_seconds", "ken_version_requests", "ken_version_seconds")
VLLMS = "vllm:lora_requests_info"
"""A name that others read; it has not our prefix."""
BY_VERSION = BY_TASK[2:]


def digest(number: int) -> str:
    return f"{number:02x}" * 32


def families(metrics: Metrics) -> dict[str, Metric]:
    return {f.name: f for f in text_string_to_metric_families(metrics.exposition().decode())}


def label_values(metrics: Metrics, family: str, *labels: str) -> set[tuple[str, ...]]:
    return {tuple(s.labels[label] for label in labels) for s in families(metrics)[family].samples}


def counted(metrics: Metrics, sample: str, *labels: str) -> dict[tuple[str, ...], float]:
    found = [s for f in families(metrics).values() for s in f.samples if s.name == sample]
    return {tuple(s.labels[label] for label in labels): s.value for s in found}


# What is counted


def test_an_answer_counts_for_its_task_its_code_its_stages_and_its_version() -> None:
    metrics = Metrics("r")
    for code in (200, 200, 503):
        metrics.requests.observe("spam", digest(1), code, 0.25, [("queue", 0.125), ("model", 0.0625)])
    assert counted(metrics, "ken_requests_total", "task", "code") == {("spam", "200"): 2, ("spam", "503"): 1}
    sums = counted(metrics, "ken_request_seconds_sum", "task", "stage")
    assert sums == {("spam", "total"): 0.75, ("spam", "queue"): 0.375, ("spam", "model"): 0.1875}
    version = digest(1)[:12]
    by_version = counted(metrics, "ken_version_requests_total", "task", "version", "code")
    assert by_version == {("spam", version, "200"): 2, ("spam", version, "503"): 1}
    assert counted(metrics, "ken_version_seconds_sum", "task", "version") == {("spam", version): 0.75}


def test_a_canary_is_counted_beside_what_is_live() -> None:
    metrics = Metrics("r")
    for number in range(100):
        canary = number % 10 == 0
        metrics.requests.observe("spam", digest(2 if canary else 1), 500 if canary else 200, 0.01)
    by_version = counted(metrics, "ken_version_requests_total", "version", "code")
    assert by_version == {(digest(1)[:12], "200"): 90, (digest(2)[:12], "500"): 10}


def test_an_answer_that_came_to_no_version_or_no_task_counts_without() -> None:
    metrics = Metrics("r")
    metrics.requests.observe("spam", None, 404, 0.01)
    metrics.requests.observe(None, None, 404, 0.01)
    assert counted(metrics, "ken_requests_total", "task") == {("spam",): 1, ("unknown",): 1}
    assert counted(metrics, "ken_version_requests_total") == {}


@pytest.mark.parametrize("name", ["other", "unknown"])
def test_a_task_with_the_name_of_a_shared_label_takes_no_place_and_removes_nothing(name: str) -> None:
    metrics = Metrics("r", most_tasks=1)
    for task in (name, None, "spam", *["topic"] * 9):
        metrics.requests.observe(task, digest(1), 200, 0.01)
    assert counted(metrics, "ken_requests_total", "task") == {("other",): 2, ("unknown",): 1, ("topic",): 8}


def test_a_shadow_counts_inputs_by_what_became_of_them_and_makes_its_task_no_more_asked_for() -> None:
    metrics = Metrics("r", most_tasks=1)
    metrics.requests.observe("spam", digest(1), 200, 0.01)
    metrics.requests.observe_shadow("spam", digest(2), {"agreed": 3, "differed": 1}, [0.125, 0.5])
    metrics.requests.observe_shadow("spam", digest(2), {"failed": 2})
    for _ in range(9):
        metrics.requests.observe_shadow("topic", digest(3), {"skipped": 1})
    shown = counted(metrics, "ken_shadow_inputs_total", "task", "version", "outcome")
    version = digest(2)[:12]
    assert shown == {
        ("spam", version, "agreed"): 3,
        ("spam", version, "differed"): 1,
        ("spam", version, "failed"): 2,
        ("other", "other", "skipped"): 9,
    }
    assert counted(metrics, "ken_shadow_difference_sum", "task") == {("spam",): 0.625}
    assert counted(metrics, "ken_shadow_difference_count", "task") == {("spam",): 2}
    assert counted(metrics, "ken_requests_total", "task") == {("spam",): 1}


# Which series there are


def test_a_task_that_grows_takes_the_place_of_the_least_used_whose_series_all_go() -> None:
    metrics = Metrics("r", most_tasks=2)
    for task in ("a", "b", "a", "a", "c", "c"):
        metrics.requests.observe(task, digest(1), 200, 0.01, [("model", 0.01)])
        metrics.requests.observe_shadow(task, digest(1), {"agreed": 1}, [0.0])
    for family in (*BY_TASK, "ken_shadow_inputs", "ken_shadow_difference"):
        assert label_values(metrics, family, "task") == {("a",), ("c",), ("other",)}
    assert counted(metrics, "ken_requests_total", "task") == {("a",): 3, ("other",): 1, ("c",): 1}


def test_a_version_no_longer_asked_for_makes_room_for_a_new_one() -> None:
    metrics = Metrics("r", most_tasks=1)
    for number in (1, 1, 1, 2, 3, 3):
        metrics.requests.observe("spam", digest(number), 200, 0.01)
    own = {(digest(1)[:12],), (digest(3)[:12],)}
    for family in BY_VERSION:
        assert label_values(metrics, family, "version") == own | {("other",)}


def test_versions_of_a_task_that_lost_its_place_make_room_for_those_of_the_one_that_took_it() -> None:
    metrics = Metrics("r", most_tasks=1)
    answers = [*[("a", 1), ("a", 2)] * 5, *[("b", 3)] * 20, ("b", 4)]
    for task, number in answers:
        metrics.requests.observe(task, digest(number), 200, 0.01)
    own = {("b", digest(3)[:12]), ("b", digest(4)[:12])}
    assert label_values(metrics, "ken_version_seconds", "task", "version") == own | {("other", "other")}


def test_a_task_that_comes_back_counts_from_zero() -> None:
    metrics = Metrics("r", most_tasks=1)
    for task in [*["a"] * 3, *["b"] * 10, *["a"] * 30]:
        metrics.requests.observe(task, digest(1), 200, 0.01)
    by_task = counted(metrics, "ken_requests_total", "task")
    assert set(by_task) == {("a",), ("other",)}
    assert by_task["a",] < 30


ANSWERS = st.lists(
    st.tuples(
        st.sampled_from([None, *"abcdef", "other"]),
        st.one_of(st.none(), st.integers(1, 9)),
        st.sampled_from([200, 404, 500]),
    ),
    max_size=80,
)


@settings(max_examples=25)
@given(ANSWERS, st.integers(1, 3))
def test_series_stay_within_their_bounds_and_those_that_were_never_removed_miss_nothing(
    answers: list[tuple[str | None, int | None, int]], most: int
) -> None:
    metrics = Metrics("r", most_tasks=most)
    for task, number, code in answers:
        metrics.requests.observe(task, number and digest(number), code, 0.01, [("model", 0.01)])
    assert_bounded(metrics, most)
    if len({task for task, _, _ in answers if task} - {"other"}) <= most:
        total = sum(counted(metrics, "ken_requests_total", "task", "code").values())
        assert total == len(answers)


def assert_bounded(metrics: Metrics, most: int) -> None:
    shared = {("other",), ("unknown",)}
    for family in BY_TASK:
        assert len(label_values(metrics, family, "task") - shared) <= most
    for family in BY_VERSION:
        own = {v for v in label_values(metrics, family, "task", "version") if v[1] != "other"}
        assert len(own) <= 2 * most
        assert {task for task, _ in own} <= {task for (task,) in label_values(metrics, "ken_requests", "task")}


def test_a_request_does_not_bring_back_the_series_of_a_task_that_loses_its_place_meanwhile() -> None:
    metrics = Metrics("r", most_tasks=1)
    rival = threading.Thread(target=lambda: [metrics.requests.observe("b", digest(2), 200, 0.01) for _ in range(3)])

    def stages() -> Iterator[tuple[str, float]]:
        rival.start()
        rival.join(0.2)
        yield "model", 0.01

    metrics.requests.observe("a", digest(1), 200, 0.01, stages())
    rival.join()
    for family in BY_TASK:
        assert label_values(metrics, family, "task") == {("b",), ("other",)}


def test_the_bounds_hold_at_every_scrape_while_threads_count() -> None:
    metrics = Metrics("r", most_tasks=3)

    def count(seed: int) -> None:
        rng = random.Random(seed)
        for n in range(400):
            favourite = n // 20  # other tasks become popular, so that places change hands
            task = f"task-{rng.choice([favourite, favourite, rng.randrange(30)])}"
            metrics.requests.observe(task, digest(rng.randrange(5)), 200, 0.01, [("model", 0.01)])

    threads = [threading.Thread(target=count, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        shown = families(metrics)
        for family in BY_TASK:
            assert len({s.labels["task"] for s in shown[family].samples} - {"other"}) <= 3
    assert_bounded(metrics, 3)


# Names and units, of a replica with every kind of event


@pytest.fixture
def busy(
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    talk: Callable[..., Any],
    eventually: Callable[..., None],
) -> Service:
    """A replica asked for more tasks and versions than get labels, with errors among its answers."""
    service = make_service(metric_tasks=2, materialised_bytes=1 << 30)
    tasks = ["a", "b", "c", "d", "e"]
    for task in tasks:
        publish(task, deltas.spam)
        publish(task, deltas.spam_2, "canary")
    publish("a", deltas.spam_3)

    async def conversation(client: httpx.AsyncClient) -> None:
        for task in [*tasks, *tasks, "a", "a@canary", "nobody", "nobody-else"]:
            await client.post(f"/v1/tasks/{task}/predict", json={"inputs": list(TEXTS)})
        await client.post("/v1/tasks/a/predict", json={"inputs": 5})
        assert (await client.post("/v1/base/verify")).status_code == 200

    talk(service, conversation)
    for number in range(30):
        service.metrics.requests.observe(tasks[number % 5], digest(number), 504, 31.0, [("load", 30.0)])
        service.metrics.requests.observe_shadow(tasks[number % 5], digest(number), {"differed": 1}, [0.5])
        facts = GenerationFacts(0.0, 0.0, 0.0, prompt_tokens=7)
        facts.note(0, 0.5, None)
        facts.note(0, 0.6, "length")
        service.metrics.requests.observe_texts(tasks[number % 5], facts)
    service.metrics.dropped.labels("expired").inc()
    eventually(lambda: service.engine.tiers.tier_of(deltas.spam.digest) == "materialised")
    return service


def test_every_metric_has_our_prefix_a_base_unit_and_an_explanation(busy: Service) -> None:
    ends = {
        "counter": {"_total"},
        "histogram": {"_seconds", "_rows", "_groups", "_tasks", "_difference"},
        "gauge": {"_seconds", "_bytes", "_rows", "_tensors", "_in_flight", "_up", "_poisoned", "_changed", "_merges",
                  "_epoch", "_moves", "_enforced"},
    }  # fmt: skip
    found = families(busy.metrics)
    assert VLLMS in found
    del found[VLLMS]
    assert len(found) > 20
    for name, family in found.items():
        shown = name + "_total" if family.type == "counter" else name
        assert re.fullmatch(r"ken_[a-z]+(_[a-z]+)*", name)
        assert any(shown.endswith(end) for end in ends[family.type]), shown
        assert len(family.documentation) > 10
        assert family.samples, name


def test_every_label_has_few_values(busy: Service) -> None:
    stages = {"load", "tokenize", "queue", "swap", "model", "total", "fetch", "decode", "merge", "attach"}
    tiers = {"materialised", "packed", "host", "disk", "store", "merge"}
    reasons, outcomes = {"expired", "abandoned"}, {"agreed", "differed", "failed", "skipped"}
    places = {"home", "second", "elsewhere"}
    known = {
        "replica": {busy.replica},
        "where": places,
        "stage": stages,
        "tier": tiers,
        "reason": reasons,
        "outcome": outcomes,
        "finish": {"stop", "length", "unfinished"},
    }
    most = {"task": 2 + 2, "version": 2 * 2 + 1, "code": 20, "le": 24}
    values: dict[str, set[str]] = {}
    for family in families(busy.metrics).values():
        if family.name == VLLMS:
            continue
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
    assert set(values) == set(known) | set(most)
    for label, allowed in known.items():
        assert values[label] <= allowed
    for label, bound in most.items():
        assert 1 < len(values[label]) <= bound, label


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtools_own_lint_finds_nothing(busy: Service) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=busy.metrics.exposition(), capture_output=True, check=False
    )
    vllms = f"{VLLMS} metric names should not contain ':'"
    assert (done.stdout + done.stderr).decode().splitlines() == [vllms]


def test_tasks_on_the_device_are_told_as_vllm_tells_adapters(busy: Service) -> None:
    (sample,) = families(busy.metrics)[VLLMS].samples
    running = sample.labels["running_lora_adapters"].split(",")
    assert set(running) < {"a", "b", "c", "d", "e"}
    assert len(running) == 2  # as many as have metric labels of their own
    assert sample.labels["waiting_lora_adapters"] == ""
    assert int(sample.labels["max_lora"]) > 2
    assert abs(sample.value - time.time()) < 3600

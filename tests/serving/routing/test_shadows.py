"""Shadow versions of a replica: who is asked, what is counted, and that nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from holding import Blocked, until

from ken_core import DeltaFile
from serving.replica.inference import Prediction
from serving.service import Service
from serving.store.urls import connect
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny

Client = httpx.AsyncClient
Talk = Callable[..., Any]
Publish = Callable[..., None]
Metric = Callable[..., float]
COUNTED = "ken_shadow_inputs_total"
BATCH = len(TEXTS)


@pytest.fixture(scope="module")
def twin(tiny: Tiny, deltas: Deltas) -> DeltaFile:
    """Another version of `spam` that answers as it does."""
    made = tiny.delta(tiny.tuned("spam-twin", ["ham", "spam"], 3, problem_type="single_label_classification"))
    assert made.digest != deltas.spam.digest
    return made


@pytest.fixture(scope="module")
def turned(tiny: Tiny) -> DeltaFile:
    """Another version of `spam` that calls ham what is spam."""
    return tiny.delta(tiny.tuned("spam-turned", ["spam", "ham"], 3))


async def routed(client: Client, **route: Any) -> None:
    response = await client.put("/v1/tasks/spam/route?wait=20", json=route)
    assert response.status_code == 200, response.text


async def served(client: Client, task: str = "spam", *texts: str, **headers: str) -> str:
    """The digest that answered."""
    asked = list(texts or TEXTS)
    response = await client.post(f"/v1/tasks/{task}/predict", json={"inputs": asked}, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-ken-delta"] == response.json()["digest"]
    return response.json()["digest"]


async def shadows_end(service: Service) -> None:
    await until(lambda: len(service.shadows) == 0)


async def given(service: Service, digest: str) -> Prediction:
    return await service.predict(digest, TEXTS, {}, 20)


def test_a_shadow_that_says_the_same_agrees_and_only_live_answers(
    service: Service, talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, twin: DeltaFile
) -> None:
    publish("spam", twin, "next")

    async def conversation(client: Client) -> None:
        await routed(client, shadow="next")
        assert (await client.get("/v1/tasks/spam/route")).json() == {"weights": {"live": 1}, "shadow": "next"}
        for _ in range(3):
            assert await served(client) == deltas.spam.digest
        await shadows_end(service)

    talk(service, conversation)
    version = twin.digest[:12]
    assert (
        metric(service, COUNTED)
        == metric(service, COUNTED, task="spam", version=version, outcome="agreed")
        == 3 * BATCH
    )
    assert metric(service, "ken_shadow_difference_count", task="spam") == 3 * BATCH
    assert metric(service, "ken_shadow_difference_sum") < 1e-4
    assert metric(service, "ken_version_requests_total") == 3
    assert metric(service, "ken_version_requests_total", version=version) == 0


def test_a_shadow_that_says_another_thing_differs(
    service: Service, talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, turned: DeltaFile
) -> None:
    publish("spam", turned, "next")

    async def conversation(client: Client) -> None:
        await routed(client, weights={"live": 1}, shadow=turned.digest)
        assert await served(client) == deltas.spam.digest
        await shadows_end(service)

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="differed") == BATCH
    assert metric(service, "ken_shadow_difference_sum") > 1e-4


def test_the_inputs_of_a_batch_that_agree_and_those_that_differ_are_counted_apart(
    service: Service, talk: Talk, publish: Publish, metric: Metric, deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2, "next")

    async def conversation(client: Client) -> int:
        ours, theirs = [await given(service, d) for d in (deltas.spam.digest, deltas.spam_2.digest)]
        await routed(client, shadow="next")
        await served(client)
        await shadows_end(service)
        best = [[answer[0]["label"] for answer in answers.outputs] for answers in (ours, theirs)]
        return sum(one == other for one, other in zip(*best, strict=True))

    agreed = talk(service, conversation)
    assert 0 < agreed < BATCH
    assert metric(service, COUNTED, outcome="agreed") == agreed
    assert metric(service, COUNTED, outcome="differed") == BATCH - agreed


def test_only_what_the_route_decides_about_is_copied_and_never_to_who_answered_it(
    service: Service, talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, twin: DeltaFile
) -> None:
    publish("spam", twin, "next")

    async def conversation(client: Client) -> None:
        await routed(client, shadow="next")
        await served(client, "spam@live")
        await served(client, f"spam@{deltas.spam.digest}")
        await served(client, **{"X-Ken-Delta": deltas.spam.digest})
        await served(client, "topic")
        await routed(client, weights={"next": 1}, shadow="next")
        assert await served(client) == twin.digest
        await client.delete("/v1/tasks/spam/route?wait=20")
        await served(client)
        await shadows_end(service)

    talk(service, conversation)
    assert metric(service, COUNTED) == 0


def test_a_refused_request_is_not_copied(
    service: Service, talk: Talk, publish: Publish, metric: Metric, twin: DeltaFile
) -> None:
    publish("spam", twin, "next")

    async def conversation(client: Client) -> None:
        await routed(client, shadow="next")
        assert (await client.post("/v1/tasks/spam/predict", json={"inputs": 5})).status_code == 422

    talk(service, conversation)
    assert metric(service, COUNTED) == 0


def test_a_shadow_that_cannot_be_loaded_is_counted_and_changes_nothing(
    service: Service,
    talk: Talk,
    publish: Publish,
    metric: Metric,
    deltas: Deltas,
    twin: DeltaFile,
    embedded_url: str,
    namespace: str,
) -> None:
    publish("spam", twin, "next")
    raw: Any = connect(embedded_url)
    assert raw.delete(f"ken:{namespace}:blob:{{{twin.digest}}}:0") == 1

    async def conversation(client: Client) -> None:
        await routed(client, shadow="next")
        for _ in range(2):
            assert await served(client) == deltas.spam.digest
            await shadows_end(service)

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="failed") == 2 * BATCH
    assert metric(service, "ken_requests_total") == metric(service, "ken_requests_total", code="200") == 2


def test_a_shadow_of_another_kind_fails(
    service: Service, talk: Talk, publish: Publish, metric: Metric, of_every_kind: dict[str, DeltaFile]
) -> None:
    publish("spam", of_every_kind["vectors"], "next", allow_other_labels=True)

    async def conversation(client: Client) -> None:
        await routed(client, shadow="next", allow_other_labels=True)
        await served(client)
        await shadows_end(service)

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="failed") == BATCH


# Room


def test_a_shadow_is_skipped_while_more_waits_than_one_batch_takes(
    make_service: Callable[..., Service], talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, twin: DeltaFile
) -> None:
    publish("spam", deltas.spam)
    publish("spam", twin, "next")
    service = make_service(batch_rows=2)

    async def conversation(_: Client) -> None:
        before = await given(service, deltas.spam.digest)
        with Blocked(service.engine):
            waiting = asyncio.create_task(given(service, deltas.spam.digest))
            await until(lambda: service.engine.waiting == len(TEXTS))
            service.shadows.offer("spam", twin.digest, TEXTS, {}, before)
            assert len(service.shadows) == 0
        await waiting

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="skipped") == BATCH


def test_more_shadows_than_may_run_at_once_are_skipped(
    service: Service, talk: Talk, metric: Metric, deltas: Deltas
) -> None:
    async def conversation(_: Client) -> None:
        before = await given(service, deltas.spam.digest)
        for _number in range(11):
            service.shadows.offer("spam", deltas.emotion.digest, TEXTS, {}, before)
        assert len(service.shadows) == 8
        assert metric(service, COUNTED) == metric(service, COUNTED, outcome="skipped") == 3 * BATCH
        await shadows_end(service)

    talk(service, conversation)
    assert metric(service, COUNTED, outcome="differed") == 8 * BATCH


def test_a_request_that_finds_the_line_full_takes_the_places_of_shadows(
    make_service: Callable[..., Service], talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, twin: DeltaFile
) -> None:
    publish("spam", deltas.spam)
    publish("spam", twin, "next")
    service = make_service(queue_rows=len(TEXTS))

    async def conversation(client: Client) -> None:
        before = await given(service, deltas.spam.digest)
        with Blocked(service.engine):
            service.shadows.offer("spam", twin.digest, TEXTS, {}, before)
            await until(lambda: service.engine.waiting == len(TEXTS))
            asked = asyncio.create_task(served(client))
            await until(lambda: service.engine.waiting == 2 * len(TEXTS))  # the shadow's are given up, not yet dropped
            assert len(service.shadows) == 0
            refused = await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"})
            assert refused.status_code == 429
        assert await asked == deltas.spam.digest

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="skipped") == BATCH


def test_a_drain_gives_shadows_up_and_takes_no_more(
    service: Service, talk: Talk, publish: Publish, metric: Metric, deltas: Deltas, twin: DeltaFile
) -> None:
    publish("spam", twin, "next")

    async def conversation(_: Client) -> None:
        before = await given(service, deltas.spam.digest)
        with Blocked(service.engine):
            service.shadows.offer("spam", twin.digest, TEXTS, {}, before)
            await until(lambda: service.engine.waiting == len(TEXTS))
            assert service.admission.requests == 0
            assert await service.drain(20) == 0
            assert len(service.shadows) == 0
            service.shadows.offer("spam", twin.digest, TEXTS, {}, before)
            assert len(service.shadows) == 0

    talk(service, conversation)
    assert metric(service, COUNTED) == metric(service, COUNTED, outcome="skipped") == 2 * BATCH

"""The HTTP surface: what is asked, what is answered, how refusals look."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from histories import keeping
from holding import Blocked, until
from problems import is_problem
from prometheus_client.parser import text_string_to_metric_families
from transformers import BertForQuestionAnswering

from ken_core import DeltaFile
from serving.api import create_app
from serving.config import load_settings
from serving.service import Service
from serving.store import Store
from serving.store.embedded import embedded_store
from serving.store.urls import connect
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores, write_base, write_tuned

Client = httpx.AsyncClient
Talk = Callable[..., Any]

MakeService = Callable[..., Service]


SPAM = "/v1/tasks/spam/predict"

# Predict


def test_one_text_gets_one_output(
    post: Callable[..., httpx.Response], deltas: Deltas, dedicated: Callable[[DeltaFile, str], dict[str, float]]
) -> None:
    response = post(SPAM, json={"inputs": TEXTS[0]})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"task", "digest", "kind", "outputs", "truncated"}
    assert (body["task"], body["digest"], body["truncated"]) == ("spam", deltas.spam.digest, [])
    assert [scores(rows) for rows in body["outputs"]] == [pytest.approx(dedicated(deltas.spam, TEXTS[0]), abs=1e-5)]


def test_a_list_gets_as_many_outputs_in_order(
    post: Callable[..., httpx.Response], deltas: Deltas, dedicated: Callable[[DeltaFile, str], dict[str, float]]
) -> None:
    outputs = post(SPAM, json={"inputs": list(TEXTS)}).json()["outputs"]
    for text, rows in zip(TEXTS, outputs, strict=True):
        assert scores(rows) == pytest.approx(dedicated(deltas.spam, text), abs=1e-5)


def test_a_pair_is_judged_together(post: Callable[..., httpx.Response]) -> None:
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    alone, listed, first = (
        post(SPAM, json={"inputs": inputs}).json()["outputs"] for inputs in (pair, [pair, "rain"], TEXTS[0])
    )
    assert len(listed) == 2
    assert scores(alone[0]) == pytest.approx(scores(listed[0]), abs=1e-5)
    assert scores(alone[0]) != pytest.approx(scores(first[0]), abs=1e-5)


def test_parameters_are_taken(post: Callable[..., httpx.Response]) -> None:
    response = post("/v1/tasks/topic/predict", json={"inputs": "rain", "parameters": {"top_k": 2}})
    assert len(response.json()["outputs"][0]) == 2


def test_the_answer_names_delta_and_stages(post: Callable[..., httpx.Response], deltas: Deltas) -> None:
    response = post(SPAM, json={"inputs": "rain"})
    assert response.headers["x-ken-delta"] == deltas.spam.digest
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert list(stages) == ["load", "tokenize", "queue", "swap", "model"]
    assert float(stages["model"]) > 0


def test_inputs_that_were_cut_are_named(post: Callable[..., httpx.Response]) -> None:
    assert post(SPAM, json={"inputs": ["rain", "rain " * 100]}).json()["truncated"] == [1]


def test_an_alias_is_asked_for_behind_an_at_sign(
    post: Callable[..., httpx.Response], publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2, alias="canary")
    canary, live = (post(f"/v1/tasks/{t}/predict", json={"inputs": "rain"}) for t in ("spam@canary", "spam"))
    assert canary.json()["digest"] == deltas.spam_2.digest
    assert canary.json()["task"] == "spam"
    assert live.json()["digest"] == deltas.spam.digest


def test_a_header_pins_another_version_of_the_task(
    post: Callable[..., httpx.Response], publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2)
    response = post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": deltas.spam.digest})
    assert response.json()["digest"] == response.headers["x-ken-delta"] == deltas.spam.digest


@pytest.mark.parametrize("digest", ["latest", "0" * 64])
def test_a_pinned_digest_that_is_no_version_of_the_task_is_refused(
    digest: str, post: Callable[..., httpx.Response]
) -> None:
    response = post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": digest})
    assert is_problem(response, 404, digest, "'spam'")


def test_a_version_of_another_task_cannot_be_pinned(post: Callable[..., httpx.Response], deltas: Deltas) -> None:
    response = post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": deltas.topic.digest})
    assert is_problem(response, 404, deltas.topic.digest)


def test_a_version_may_be_pinned_by_its_first_twelve_digits_and_the_answer_has_them_all(
    post: Callable[..., httpx.Response], deltas: Deltas
) -> None:
    short = deltas.spam.digest[:12]
    pinned = post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": short})
    named = post(f"/v1/tasks/spam@{short}/predict", json={"inputs": "rain"})
    of_version = post(f"/v2/models/spam/versions/{short}/infer", json={
        "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["rain"]}],
    })  # fmt: skip
    for response in (pinned, named, of_version):
        assert response.status_code == 200, response.text
        assert response.headers["x-ken-delta"] == deltas.spam.digest
    foreign = post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": deltas.topic.digest[:12]})
    assert is_problem(foreign, 404, "no version of task 'spam'")
    assert is_problem(post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": short[:11]}), 404, "12 or more")


def test_an_unknown_task_is_refused_with_names_near_it(post: Callable[..., httpx.Response]) -> None:
    assert is_problem(post("/v1/tasks/topik/predict", json={"inputs": "rain"}), 404, "'topik'", "'topic'")


def test_an_unknown_alias_is_refused_with_those_there_are(post: Callable[..., httpx.Response]) -> None:
    assert is_problem(post("/v1/tasks/spam@next/predict", json={"inputs": "rain"}), 404, "'next'", "live")


@pytest.mark.parametrize("name", ["a%20b", "spam%00", "x" * 300])
def test_a_name_no_task_can_have_is_refused_as_a_problem(name: str, post: Callable[..., httpx.Response]) -> None:
    response = post(f"/v1/tasks/{name}/predict", json={"inputs": "rain"})
    assert response.status_code in (404, 422)
    assert is_problem(response, response.status_code)


# Bodies


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"", 400, "empty"),
        (b"  \n", 400, "empty"),
        (b"{", 400, "JSON"),
        (b"inputs=rain", 400, "JSON"),
        (b'{"inputs": "\xff"}', 400, "UTF-8"),
        (b'{"inputs": "\\ud800"}', 400, "JSON"),
        (b'{"inputs": NaN}', 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
        (b"null", 422, "body"),
        (b"[]", 422, "body"),
        (b'"rain"', 422, "body"),
        (b"{}", 422, "inputs"),
        (b'{"inputs": null}', 422, "inputs"),
        (b'{"inputs": 5}', 422, "inputs"),
        (b'{"inputs": []}', 422, "at least one"),
        (b'{"inputs": ["rain", 5]}', 422, "inputs"),
        (b'{"inputs": [["rain", "sun"]]}', 422, "inputs"),
        (b'{"inputs": {"text": "rain"}}', 422, "inputs"),
        (b'{"inputs": {"text": "rain", "text_pair": "sun", "third": ""}}', 422, "inputs"),
        (b'{"inputs": "rain", "input": "rain"}', 422, "input"),
        (b'{"inputs": "rain", "parameters": []}', 422, "parameters"),
        (b'{"inputs": "rain", "parameters": {"top_k": 0}}', 422, "top_k"),
        (b'{"inputs": "rain", "parameters": {"top_k": "all"}}', 422, "top_k"),
        (b'{"inputs": "rain", "parameters": {"pooling": "mean"}}', 422, "pooling"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_meant_is_refused_and_says_what_is_wrong(
    content: bytes, status: int, word: str, post: Callable[..., httpx.Response]
) -> None:
    assert is_problem(post(SPAM, content=content), status, word)


def test_the_empty_text_is_an_input_like_any_other(post: Callable[..., httpx.Response]) -> None:
    assert post(SPAM, json={"inputs": ["", "rain"]}).status_code == 200


def test_more_inputs_than_allowed_are_refused_with_both_numbers(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(max_inputs=3)
    publish("spam", deltas.spam)

    async def conversation(client: Client) -> None:
        assert (await client.post(SPAM, json={"inputs": ["rain"] * 3})).status_code == 200
        assert is_problem(await client.post(SPAM, json={"inputs": ["rain"] * 4}), 422, "4", "3")

    talk(service, conversation)


async def in_pieces(total: int) -> Any:
    for _ in range(total // 512):
        yield b" " * 512


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_longer_than_allowed_is_refused_declared_or_not(
    chunked: bool, make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(max_body_bytes=2048)
    publish("spam", deltas.spam)

    async def conversation(client: Client) -> None:
        content = in_pieces(4096) if chunked else b" " * 4096
        assert is_problem(await client.post(SPAM, content=content), 413, "2048")
        assert (await client.post(SPAM, json={"inputs": "rain"})).status_code == 200

    talk(service, conversation)
    assert service.admission.requests == 0


def test_a_body_that_is_too_long_is_not_counted_as_a_failure_of_the_server(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk, metric: Callable[..., float]
) -> None:
    service = make_service(max_body_bytes=2048)
    publish("spam", deltas.spam)

    async def conversation(client: Client) -> None:
        await client.post(SPAM, content=in_pieces(4096))

    talk(service, conversation)
    assert metric(service, "ken_requests_total", code="500") == 0


# Request ids


def test_a_request_id_is_echoed(post: Callable[..., httpx.Response]) -> None:
    for path in (SPAM, "/v1/tasks/nobody/predict"):
        assert (
            post(path, json={"inputs": "rain"}, headers={"X-Request-Id": "mine-7"}).headers["x-request-id"] == "mine-7"
        )


def test_a_request_without_an_id_gets_one_of_its_own(post: Callable[..., httpx.Response]) -> None:
    ids = {post(SPAM, json={"inputs": "rain"}).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert "" not in ids


@pytest.mark.parametrize("odd", ["", "a b", "x" * 200, "é"])
def test_a_request_id_that_does_not_fit_a_log_line_is_replaced(odd: str, post: Callable[..., httpx.Response]) -> None:
    response = post(SPAM, json={"inputs": "rain"}, headers={"X-Request-Id": odd.encode("latin-1")})
    assert response.headers["x-request-id"] not in (odd, "")


def test_behind_ray_the_header_is_left_to_ray(service: Service) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(service, echo_request_ids=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://ken") as client:
            return await client.post("/v1/tasks/nobody/predict", headers={"X-Request-Id": "mine-7"})

    response = asyncio.run(ask())
    assert "x-request-id" not in response.headers
    assert response.json()["request_id"] == "mine-7"


# Refusals of other kinds


def test_a_path_that_is_not_there_is_a_problem(get: Callable[..., httpx.Response]) -> None:
    assert is_problem(get("/v1/nothing"), 404)


def test_a_method_that_does_not_fit_is_a_problem_that_names_those_that_do(get: Callable[..., httpx.Response]) -> None:
    response = get(SPAM)
    assert is_problem(response, 405)
    assert response.headers["allow"] == "POST"


def test_a_task_of_an_unsupported_kind_is_501(
    post: Callable[..., httpx.Response], publish: Callable[..., None], tiny: Tiny
) -> None:
    publish("words", tiny.delta(tiny.filling("words-501", seed=51)))
    response = post("/v1/tasks/words/predict", json={"inputs": "rain"})
    assert is_problem(response, 501, "fill-mask", "text-classification")


@pytest.fixture
def failing(service: Service, publish: Callable[..., None], tiny: Tiny) -> str:
    """The predict path of a task that fails inside the model."""
    labels = ["start", "end", "and a third, for which the model has no name"]
    folder = write_tuned(tiny.base_folder, tiny.folder / "failing", labels, 61, architecture=BertForQuestionAnswering)
    publish("failing", tiny.delta(folder))
    return "/v1/tasks/failing/predict"


def test_an_unexpected_failure_tells_the_client_nothing_but_where_to_look(
    failing: str, post: Callable[..., httpx.Response]
) -> None:
    response = post(failing, json={"inputs": {"question": "rain?", "context": "rain"}})
    assert response.status_code == 500
    for leak in ("Traceback", "ValueError", "too many values", ".py", "/tmp", "/work"):
        assert leak not in response.text


def test_an_unexpected_failure_is_found_in_the_log_by_the_id_in_the_answer(
    failing: str, post: Callable[..., httpx.Response], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = post(failing, json={"inputs": {"question": "rain?", "context": "rain"}})
    assert is_problem(response, 500)
    assert any(response.json()["request_id"] in record.getMessage() for record in caplog.records)


def test_a_delta_of_another_base_is_refused_without_telling_where_the_base_lies(
    post: Callable[..., httpx.Response], publish: Callable[..., None], tmp_path: Path, tiny: Tiny
) -> None:
    other = Tiny(tmp_path, write_base(tmp_path / "other-bert", seed=77))
    foreign = other.delta(write_tuned(other.base_folder, tmp_path / "foreign", ["no", "yes"], seed=78))
    publish("foreign", foreign)
    response = post("/v1/tasks/foreign/predict", json={"inputs": "rain"})
    assert is_problem(response, response.status_code, foreign.manifest.base.fingerprint)
    assert str(tiny.base_folder.parent) not in response.text


# Load and time


def test_a_full_queue_is_429_with_retry_after(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(queue_rows=1)
    publish("spam", deltas.spam)

    async def conversation(client: Client) -> None:
        await client.post(SPAM, json={"inputs": "rain"})
        with Blocked(service.engine):
            first = asyncio.create_task(client.post(SPAM, json={"inputs": "rain"}))
            await until(lambda: service.engine.waiting == 1)
            refused = await client.post(SPAM, json={"inputs": "rain"})
        assert is_problem(refused, 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await first).status_code == 200

    talk(service, conversation)


def test_a_deadline_that_passes_is_504(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(request_timeout_seconds=0.2)
    publish("spam", deltas.spam)

    async def conversation(client: Client) -> None:
        with Blocked(service.engine):
            assert is_problem(await client.post(SPAM, json={"inputs": "rain"}), 504, "0.2 s")

    talk(service, conversation)


def test_a_drain_waits_for_what_was_accepted_and_refuses_what_comes(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        await client.post(SPAM, json={"inputs": "rain"})
        with Blocked(service.engine):
            accepted = asyncio.create_task(client.post(SPAM, json={"inputs": list(TEXTS)}))
            await until(lambda: service.engine.waiting == len(TEXTS))
            draining = asyncio.create_task(service.drain(20))
            await until(lambda: service.admission.draining)
            refused = await client.post(SPAM, json={"inputs": "rain"})
            assert is_problem(refused, 503, "stopping")
            assert int(refused.headers["retry-after"]) >= 1
            assert is_problem(await client.get("/readyz"), 503)
            assert (await client.get("/healthz")).status_code == 200
            assert not draining.done()
        assert await draining == 0
        assert (await accepted).status_code == 200

    talk(service, conversation)


def test_a_drain_that_runs_out_of_time_says_how_many_are_left(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        await client.post(SPAM, json={"inputs": "rain"})
        with Blocked(service.engine):
            accepted = asyncio.create_task(client.post(SPAM, json={"inputs": "rain"}))
            await until(lambda: service.engine.waiting == 1)
            assert await service.drain(0.05) == 1
        assert (await accepted).status_code == 200

    talk(service, conversation)


@pytest.fixture
def orphan(tmp_path: Path, make_service: MakeService, deltas: Deltas, talk: Talk) -> Service:
    """A service that has answered for `spam`, knows `topic`, and lost its store."""
    with embedded_store(tmp_path / "own") as url:
        Store(url).tasks.publish("spam", deltas.spam)
        Store(url).tasks.publish("topic", deltas.topic)
        service = make_service(url, namespace="default")

        async def warm(client: Client) -> None:
            assert (await client.post(SPAM, json={"inputs": "rain"})).status_code == 200

        talk(service, warm)
    return service


def test_with_the_store_down_what_a_tier_holds_is_answered_and_the_rest_is_503(orphan: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        assert (await client.post(SPAM, json={"inputs": "rain"})).status_code == 200
        refused = await client.post("/v1/tasks/topic/predict", json={"inputs": "rain"})
        assert is_problem(refused, 503, "does not answer")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/readyz")).status_code == 200
        assert [t["name"] for t in (await client.get("/v1/tasks")).json()] == ["spam", "topic"]

    talk(orphan, conversation)


def test_with_the_store_down_a_change_is_503_and_says_that_nothing_was_changed(
    orphan: Service, talk: Talk, deltas: Deltas
) -> None:
    async def conversation(client: Client) -> None:
        response = await client.post("/v1/tasks/spam/promote", json={"digest": deltas.spam.digest})
        assert is_problem(response, 503, "nothing was changed")

    talk(orphan, conversation)


# Operations


def test_health_and_readiness_are_ok_between_start_and_stop(get: Callable[..., httpx.Response]) -> None:
    assert get("/healthz").json() == {"status": "ok"}
    well = {"reachable": True, "silent_seconds": 0, "other_history": False, "trouble": None}
    placed = {"epoch": 1, "seen": 1, "enforced": True, "trouble": None}
    assert get("/readyz").json() == {"status": "ready", "store": well, "placement": placed}
    assert "X-Ken-Store" not in get("/readyz").headers


def test_every_answer_of_a_replica_whose_store_was_emptied_says_so(
    private_url: str, make_service: MakeService, deltas: Deltas, talk: Talk, eventually: Callable[..., None]
) -> None:
    store = Store(private_url)
    store.tasks.publish("spam", deltas.spam)
    service = make_service(private_url, namespace="default")

    async def conversation(client: Client) -> None:
        assert "X-Ken-Store" not in (await client.post(SPAM, json={"inputs": "rain"})).headers
        connect(private_url).flushall()
        await asyncio.to_thread(eventually, lambda: keeping(store))
        answered = await client.post(SPAM, json={"inputs": "rain"})
        assert answered.status_code == 200
        for response in (answered, await client.get("/readyz"), await client.get("/v1/tasks/none")):
            assert response.headers["X-Ken-Store"] == "other-history"
        told = (await client.get("/readyz")).json()["store"]
        assert told["other_history"]
        assert "ken adopt-store" in told["trouble"]
        adopted = await client.post("/v1/store/adopt", params={"wait": 20})
        assert adopted.status_code == 200
        assert is_problem(await client.post("/v1/store/adopt"), 409, "nothing to end")
        assert (adopted.json()["seen"], adopted.json()["pending"]) == ([service.replica], [])
        assert is_problem(await client.post(SPAM, json={"inputs": "rain"}), 404)
        assert "X-Ken-Store" not in (await client.get("/readyz")).headers

    talk(service, conversation)


def test_a_replica_that_has_not_started_is_not_ready(tiny: Tiny, embedded_url: str, tmp_path: Path, talk: Talk) -> None:
    service = Service(load_settings(base=str(tiny.base_folder), data_dir=tmp_path), embedded_url)

    async def conversation(client: Client) -> None:
        assert is_problem(await client.get("/readyz"), 503, "starting")
        refused = await client.post(SPAM, json={"inputs": "rain"})
        assert is_problem(refused, 503, "starting")
        assert int(refused.headers["retry-after"]) >= 1

    talk(service, conversation)


def test_a_replica_whose_engine_has_ended_is_not_healthy(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        service.engine.stop()
        assert is_problem(await client.get("/healthz"), 503)

    talk(service, conversation)


def test_a_poisoned_replica_is_not_healthy_and_answers_503(
    exchanging: Service, talk: Talk, monkeypatch: pytest.MonkeyPatch, metric: Callable[..., float]
) -> None:
    """An exchange that fails, and a checkpoint that cannot be read again."""

    def fail(*_: object) -> None:
        raise OSError("input/output error")

    async def conversation(client: Client) -> None:
        for task in ("spam", "topic"):
            assert (await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"})).status_code == 200
        for kernels in ("_exchanges", "_switches"):
            monkeypatch.setattr(exchanging.resident, kernels, dict.fromkeys(exchanging.resident._exchanges, fail))
        monkeypatch.setattr(exchanging.resident, "checkpoint_tensor", fail)
        for task in ("spam", "topic"):
            refused = await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"})
            assert is_problem(refused, 503, "unknown state")
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).status_code >= 500

    talk(exchanging, conversation)
    assert metric(exchanging, "ken_poisoned") == 1


def test_the_base_is_described_without_its_path(
    get: Callable[..., httpx.Response], service: Service, tiny: Tiny
) -> None:
    described = get("/v1/base").json()
    assert described["name"] == "tiny-bert"
    assert described["fingerprint"] == service.resident.fingerprint.digest
    assert described["bytes"] == service.resident.nbytes
    assert str(tiny.base_folder.parent) not in json.dumps(described)


def test_the_base_verifies_after_requests(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> dict[str, Any]:
        await asyncio.gather(
            *(client.post(f"/v1/tasks/{t}/predict", json={"inputs": "rain"}) for t in ("spam", "topic", "emotion") * 5)
        )
        return (await client.post("/v1/base/verify")).json()

    found = talk(service, conversation)
    assert found == {"tensors": len(service.resident.fingerprint.tensors), "differing": [], "differing_in_file": []}


def test_metrics_are_what_prometheus_reads_and_name_the_replica(service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> httpx.Response:
        await client.post(SPAM, json={"inputs": "rain"})
        await client.post(SPAM, json={"inputs": 5})
        await client.post("/v1/tasks/nobody/predict", json={"inputs": "rain"})
        return await client.get("/metrics")

    response = talk(service, conversation)
    assert response.headers["content-type"].startswith("text/plain")
    samples = [s for f in text_string_to_metric_families(response.text) for s in f.samples]
    assert {s.labels["replica"] for s in samples} == {service.replica}
    assert all(s.name.startswith(("ken_", "vllm:")) for s in samples)
    counted = {(s.labels["task"], s.labels["code"]): s.value for s in samples if s.name == "ken_requests_total"}
    assert counted == {("spam", "200"): 1, ("spam", "422"): 1, ("unknown", "404"): 1}
    names = {s.name for s in samples}
    assert {"ken_batch_rows_count", "ken_swaps_total", "ken_queue_rows", "ken_cache_bytes", "ken_store_up"} <= names


def test_tasks_beyond_the_bound_share_one_label(
    make_service: MakeService, publish: Callable[..., None], deltas: Deltas, talk: Talk
) -> None:
    service = make_service(metric_tasks=2)
    names = ["a", "b", "c", "d"]
    for name in names:
        publish(name, deltas.spam)

    async def conversation(client: Client) -> str:
        for name in [*names, "a", *(f"unknown-{i}" for i in range(5))]:
            await client.post(f"/v1/tasks/{name}/predict", json={"inputs": "rain"})
        return (await client.get("/metrics")).text

    families = text_string_to_metric_families(talk(service, conversation))
    counted = {s.labels["task"]: s.value for f in families for s in f.samples if s.name == "ken_requests_total"}
    assert counted == {"a": 2, "b": 1, "other": 2, "unknown": 5}


def test_the_documentation_page_is_there(get: Callable[..., httpx.Response]) -> None:
    assert get("/docs").status_code == 200

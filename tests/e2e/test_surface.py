"""The whole API through the proxy: other servers' clients, a canary, discovery of metrics, and the log."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections import Counter
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.client import Client
from serving.launch.server_process import ServerProcess
from tests.e2e.conftest import PublishedTask

pytestmark = pytest.mark.e2e


def test_a_delta_published_over_http_takes_its_share_of_what_flows_and_gives_it_back(
    server: ServerProcess, published: list[PublishedTask], later: PublishedTask
) -> None:
    live, canary = published[0], later
    with Client(server.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:

        def digests(count: int) -> Counter[str]:
            asked = pool.map(lambda i: client.predict("split", live.texts[i % 50]).digest, range(count))
            return Counter(asked)

        try:
            client.publish("split", live.file, wait=20)
            client.publish("split", canary.file, "canary", wait=20)
            assert digests(16) == {live.digest: 16}
            flowing = pool.submit(digests, 100)
            assert not client.set_route("split", {"live": 1, "canary": 1}, wait=20).pending
            assert set(digests(80)) == {live.digest, canary.digest}
            client.rollback_route("split", wait=20)
            assert digests(16) == {live.digest: 16}
            assert sum(flowing.result().values()) == 100
            counted = _counted(httpx.get(f"{server.url}/metrics").text, "split")
            assert set(counted) == {(live.digest[:12], "200"), (canary.digest[:12], "200")}
            assert client.task("split").tiers == {live.digest: "packed", canary.digest: "packed"}
            assert [entry.action for entry in client.history("split")][:2] == ["rollback-route", "route"]
        finally:
            client.delete_task("split", force=True, wait=20)


def _counted(exposition: str, task: str) -> dict[tuple[str, str], float]:
    """The number of a task's requests, by version and HTTP status."""
    samples = [s for family in text_string_to_metric_families(exposition) for s in family.samples]
    found = [s for s in samples if s.name == "ken_version_requests_total" and s.labels["task"] == task]
    return {(s.labels["version"], s.labels["code"]): s.value for s in found}


def test_clients_of_other_servers_get_the_same_scores(
    server: ServerProcess, published: list[PublishedTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, triton = pytest.importorskip("huggingface_hub"), pytest.importorskip("tritonclient.http")
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", False
    )  # offline, its clients refuse to call any server
    task, text = published[0], published[0].texts[0]
    with Client(server.url, timeout=60) as client:
        expected = {one["label"]: one["score"] for one in client.predict(task.name, text).outputs[0]}
    best = max(expected, key=expected.__getitem__)

    classified = hub.InferenceClient(model=f"{server.url}/models/{task.name}").text_classification(text)
    assert (classified[0].label, classified[0].score) == (best, pytest.approx(expected[best], abs=1e-5))

    asked = triton.InferInput("text", [1], "BYTES")
    asked.set_data_from_numpy(np.array([text], dtype=object), binary_data=False)
    wanted = [triton.InferRequestedOutput(name, binary_data=False) for name in ("label", "score")]
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as kserve:
        inferred = kserve.infer(task.name, [asked], outputs=wanted)
    assert inferred.as_numpy("label").tolist() in ([best], [best.encode()])
    assert inferred.as_numpy("score")[0] == pytest.approx(expected[best], abs=1e-5)

    tei = httpx.post(f"{server.url}/predict", json={"inputs": text}, headers={"X-Ken-Task": task.name}, timeout=60)
    assert tei.json()[0]["score"] == pytest.approx(expected[best], abs=1e-5)

    models = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none needed").models.list()
    assert {one.name for one in published} <= {model.id for model in models}


def test_the_console_and_what_it_shows_reach_a_browser_as_it_happens(
    server: ServerProcess, published: list[PublishedTask]
) -> None:
    task = published[0]
    page = httpx.get(f"{server.url}/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert httpx.get(f"{server.url}/v1/session").json()["needs_key"] is False
    with httpx.stream("GET", f"{server.url}/v1/events", timeout=30) as events, Client(server.url, timeout=60) as client:
        lines = events.iter_lines()
        assert next(lines).startswith(":")
        revision = client.promote(task.name, task.digest).revision
        told = next(json.loads(line.removeprefix("data: ")) for line in lines if line.startswith('data: {"task"'))
        assert (told["task"], told["revision"], told["action"]) == (task.name, revision, "promote")
        client.predict(task.name, task.texts[0])
    found = httpx.get(f"{server.url}/v1/activity", timeout=30).json()
    assert {one.name for one in published} <= {one["task"] for one in found["tasks"]}
    assert [one["trouble"] for one in found["replicas"]] == [[] for _ in found["replicas"]]


def test_each_replica_is_scraped_where_discovery_says(server: ServerProcess) -> None:
    groups = httpx.get(f"{server.url}/metrics/targets").json()
    assert len(groups) >= 1
    for group in groups:
        (address,) = group["targets"]
        exposition = httpx.get(f"http://{address}/metrics").text
        named = {s.labels["replica"] for f in text_string_to_metric_families(exposition) for s in f.samples}
        assert named == {group["labels"]["replica"]}


def test_a_change_is_a_line_of_json_in_the_log_with_who_and_the_requests_id(
    server: ServerProcess, published: list[PublishedTask]
) -> None:
    body, headers = {"digest": published[0].digest}, {"X-Request-Id": "audited-17"}
    path = f"{server.url}/v1/tasks/{published[0].name}/promote"
    assert httpx.post(path, json=body, headers=headers, timeout=60).status_code == 200
    deadline = time.monotonic() + 20
    while not (lines := _logged(server, "audited-17")):
        assert time.monotonic() < deadline, "the log does not tell of it"
        time.sleep(0.1)
    assert [(line["logger"], line["action"], line["who"], line["outcome"]) for line in lines] == [
        ("ken.audit", "promote", "anyone", "done")
    ]


def _logged(server: ServerProcess, word: str) -> list[dict[str, Any]]:
    """The log's lines that contain a word. Ray passes lines on a moment after they were written."""
    assert server.log is not None
    return [json.loads(line) for line in server.log.read_text().splitlines() if word in line]

"""What the server answers is what the tuned model answers."""

from __future__ import annotations

import concurrent.futures
import random
import threading
from pathlib import Path

import httpx
import pytest

from ken_core import deltafile, open_base
from serving.launch.server_process import ServerProcess
from serving.store import Store
from serving.workers.steps import finish
from tests.e2e.conftest import PublishedTask

pytestmark = pytest.mark.e2e

Scores = dict[str, float]


def served_scores(client: httpx.Client, task: str, text: str) -> Scores:
    response = client.post(f"/v1/tasks/{task}/predict", json={"inputs": text})
    assert response.status_code == 200, response.text
    return {o["label"]: o["score"] for o in response.json()["outputs"][0]}


def pipeline_scores(task: PublishedTask, texts: list[str]) -> list[Scores]:
    from transformers import pipeline

    classify = pipeline("text-classification", str(task.folder), top_k=None, device="cpu")
    return [{o["label"]: o["score"] for o in classify([text], truncation=True)[0]} for text in texts]


def farthest(found: Scores, expected: Scores) -> float:
    """The largest difference between two probability vectors; 1 if the labels differ."""
    return max(abs(found[k] - expected[k]) for k in expected) if found.keys() == expected.keys() else 1.0


def test_fifty_texts_of_each_task_get_the_probabilities_of_the_applied_model(
    server: ServerProcess, published: list[PublishedTask]
) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for task in published:
            texts = task.texts[:50]
            expected = pipeline_scores(task, texts)
            found = [served_scores(client, task.name, text) for text in texts]
            assert max(farthest(f, e) for f, e in zip(found, expected, strict=True)) < 1e-5


def test_a_neighbours_delta_would_fail_that_comparison(minilm: Path, published: list[PublishedTask]) -> None:
    """The control: the same head on a backbone with another task's delta gives other probabilities."""
    import torch

    from ken_core import ResidentModel
    from ken_core.fingerprint import fingerprint
    from ken_core.heads import graft_split
    from ken_core.tokenization import Encoder, collate
    from serving.pipelines.base import TaskSpec
    from serving.pipelines.text_classification import TextClassification

    base = open_base(str(minilm))
    identity = fingerprint(base.backbone_tensors).digest
    resident = ResidentModel(base)
    first, second = (deltafile.read(deltafile.open_file(t.file), base, identity) for t in published[:2])
    own, neighbour = resident.attach(first), resident.attach(second)
    task = published[0]
    model = graft_split(resident.backbone, first.architecture, first.config, own.head)
    kind = TextClassification()
    spec = TaskSpec(model.config, Encoder(base, model.config, {}))
    prepared = finish(kind.prepare(task.texts[:5], spec, kind.parameters()))
    answers = {}
    with torch.inference_mode():
        for name, delta in (("own", own), ("neighbour", neighbour)):
            resident.activate(delta)
            batches = [collate(one.rows, 0, resident.device) for one in prepared]
            raw = [kind.run_head(model, resident.backbone(**b, return_dict=True), b) for b in batches]
            scored = [kind.present(p, r, spec, kind.parameters()) for p, r in zip(prepared, raw, strict=True)]
            answers[name] = [{o["label"]: o["score"] for o in outputs} for outputs in scored]
    expected = pipeline_scores(task, task.texts[:5])
    assert max(farthest(f, e) for f, e in zip(answers["own"], expected, strict=True)) < 1e-5
    assert max(farthest(f, e) for f, e in zip(answers["neighbour"], expected, strict=True)) > 1e-3


def test_a_thousand_interleaved_requests_leave_every_base_tensor_bit_identical(
    server: ServerProcess, published: list[PublishedTask]
) -> None:
    requests = [(t, text) for t in published for text in t.texts]
    requests = random.Random(0).choices(requests, k=1000)
    with httpx.Client(base_url=server.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:

        def ask(request: tuple[PublishedTask, str]) -> bool:
            task, text = request
            response = client.post(f"/v1/tasks/{task.name}/predict", json={"inputs": text, "parameters": {"top_k": 1}})
            return response.status_code == 200 and response.headers["x-ken-delta"] == task.digest

        assert all(pool.map(ask, requests))
        found = client.post("/v1/base/verify").json()
    assert found["tensors"] == 103
    assert found["differing"] == []


def test_a_promotion_while_requests_flow_loses_none_and_takes_over(
    server: ServerProcess, published: list[PublishedTask], later: PublishedTask, store_url: str
) -> None:
    store = Store(store_url)
    task, other = published[0], later
    store.tasks.publish("flowing", deltafile.open_file(task.file))
    store.replicas.wait(store.tasks.publish("flowing", deltafile.open_file(other.file), alias="next"), 10)
    digests: list[str] = []
    promoted = threading.Event()
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(8) as pool:

            def ask(i: int) -> str:
                if i == 60:
                    revision = store.tasks.promote("flowing", other.digest)
                    assert not store.replicas.wait(revision, 20).pending
                    promoted.set()
                elif i >= 130:
                    assert promoted.wait(60)
                response = client.post("/v1/tasks/flowing/predict", json={"inputs": task.texts[i % 50]})
                assert response.status_code == 200, response.text
                return str(response.json()["digest"])

            digests = list(pool.map(ask, range(200)))
            assert not store.replicas.wait(store.events.revision(), 10).pending
            after = [ask(0) for _ in range(5)]
    finally:
        store.tasks.delete("flowing", force=True)
    assert set(digests) == {task.digest, other.digest}
    assert set(after) == {other.digest}


def test_a_version_can_be_pinned_and_an_alias_asked_for(
    server: ServerProcess, published: list[PublishedTask], later: PublishedTask, store_url: str
) -> None:
    store = Store(store_url)
    store.tasks.publish("two", deltafile.open_file(published[0].file))
    revision = store.tasks.publish("two", deltafile.open_file(later.file), alias="canary")
    assert not store.replicas.wait(revision, 10).pending
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            body = {"inputs": "some text"}
            live = client.post("/v1/tasks/two/predict", json=body)
            canary = client.post("/v1/tasks/two@canary/predict", json=body)
            pinned = client.post("/v1/tasks/two/predict", json=body, headers={"X-Ken-Delta": later.digest})
            foreign = client.post("/v1/tasks/two/predict", json=body, headers={"X-Ken-Delta": published[2].digest})
    finally:
        store.tasks.delete("two", force=True)
    assert live.json()["digest"] == published[0].digest
    assert canary.json()["digest"] == pinned.json()["digest"] == later.digest
    assert foreign.status_code == 404

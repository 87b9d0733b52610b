"""A replica whose weights are in an unknown state answers no further requests, and is replaced."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from serving.launch.server_process import ServerProcess
from serving.store import Store
from tests.e2e.conftest import PublishedTask, publish_all
from tests.e2e.running import settings_on

pytestmark = pytest.mark.e2e


def test_a_poisoned_replica_is_replaced_by_one_that_answers(
    minilm: Path, tmp_path: Path, store_url: str, published: list[PublishedTask]
) -> None:
    publish_all(store_url, published)
    store = Store(store_url)
    settings = {**settings_on(minilm, tmp_path, store_url), "mixed": "off"}  # only an exchange can lose the weights
    first, second = published[:2]
    with (
        ServerProcess(settings, tmp_path / "log", module="tests.e2e.failing_server") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def ask(task: PublishedTask) -> httpx.Response:
            return client.post(f"/v1/tasks/{task.name}/predict", json={"inputs": task.texts[0]})

        sound = ask(first).raise_for_status().json()
        name = client.get("/v1/base").json()["replica"]
        broken = store.replicas.reports()[name].process
        (tmp_path / "poison").touch()
        refused = ask(second)
        assert refused.status_code == 503
        assert "unknown state" in refused.text
        deadline = time.monotonic() + 90
        while (answer := ask(first)).status_code != 200:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.5)
        assert client.get("/v1/base").json()["replica"] == name, "the replica in its place has its name"
        assert store.replicas.reports()[name].process != broken
        assert answer.json()["outputs"][0][0]["label"] == sound["outputs"][0][0]["label"]
        assert ask(second).json()["digest"] == second.digest

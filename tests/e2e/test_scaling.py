"""Scaling and updating by the manifest for Kubernetes: requests are answered all the while.

On one machine, without Ray's autoscaler: as many replicas as the bounds of the autoscaling configuration say. A replica
of a private cluster that ends has no time in which others stop asking it, so there must be another one. In pods, and by
load: test_pods.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ken_core import open_file
from serving.launch.server_process import ServerProcess
from serving.store import Store
from tests.e2e.conftest import PublishedTask
from tests.e2e.from_manifest import serve_config
from tests.e2e.running import processes_of, settings_on

pytestmark = pytest.mark.e2e
NAMESPACE = "scaling"


def test_replicas_join_those_that_run_and_follow_those_that_an_update_ends_and_every_request_is_answered(
    minilm: Path, work: Path, tmp_path: Path, store_url: str, published: list[PublishedTask]
) -> None:
    task = published[0]
    Store(store_url, NAMESPACE).tasks.publish(task.name, open_file(task.file))
    settings = settings_on(minilm, work / "server", store_url) | {"data_dir": str(tmp_path), "replicas": "2"}
    config = on_this_machine(serve_config(), settings)
    deploy(config, 1, tmp_path)
    with ServerProcess(settings, tmp_path / "log", module="tests.e2e.from_manifest") as server:
        await_deployed(tmp_path)
        first = await_replicas(server, 1)
        stop = threading.Event()
        statuses: list[int] = []

        def ask() -> None:
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while not stop.is_set():
                    asked = client.post(f"/v1/tasks/{task.name}/predict", json={"inputs": "a text"})
                    statuses.append(asked.status_code)

        client = threading.Thread(target=ask)
        client.start()
        try:
            deploy(config, 2, tmp_path)
            both = await_replicas(server, 2)
            assert first < both
            update(config, tmp_path)
            assert len(running_at_once(server, both)) > len(both), "an old replica ended before a new one was there"
        finally:
            stop.set()
            client.join()
        assert set(statuses) == {200}


def on_this_machine(config: dict[str, Any], settings: dict[str, str]) -> dict[str, Any]:
    """The manifest's configuration with folders and ports of the test."""
    (application,) = config["applications"]
    del config["http_options"]
    own = {"base": settings["base"], "data_dir": settings["data_dir"], "host": "127.0.0.1"}
    application["args"] |= own | {"metrics_port": 0, "namespace": NAMESPACE, "threads": 1}
    return config


def deploy(config: dict[str, Any], count: int, folder: Path) -> None:
    """Change the number of replicas where the manifest has it."""
    (application,) = config["applications"]
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= {"min_replicas": count, "max_replicas": count}
    write(config, folder)


def update(config: dict[str, Any], folder: Path) -> None:
    """Change a setting, so that Serve replaces every replica."""
    (application,) = config["applications"]
    application["args"]["max_merges"] = 7
    write(config, folder)


def write(config: dict[str, Any], folder: Path) -> None:
    new = folder / "manifest.new"
    new.write_text(json.dumps(config))
    os.replace(new, folder / "manifest.json")


def replicas(server: ServerProcess) -> set[int]:
    """The process ids of the replicas."""
    found = set()
    for process in processes_of(server):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica:ken"):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def await_replicas(server: ServerProcess, count: int) -> set[int]:
    """Wait until so many replicas run. Returns their process ids."""
    deadline = time.monotonic() + 120
    while len(found := replicas(server)) != count:
        assert time.monotonic() < deadline, f"{len(found)} replicas run"
        time.sleep(0.1)
    return found


def running_at_once(server: ServerProcess, old: set[int]) -> set[int]:
    """The most replicas that ran at once until all old ones were replaced."""
    deadline = time.monotonic() + 120
    most: set[int] = set()
    while (now := replicas(server)) & old or len(now) != len(old):
        assert time.monotonic() < deadline, "old replicas run on"
        most = max(most, now, key=len)
        time.sleep(0.1)
    return most


def await_deployed(folder: Path) -> None:
    """Wait until Serve runs what was deployed last, and nothing else."""
    manifest, deployed = folder / "manifest.json", folder / "deployed.json"
    deadline = time.monotonic() + 120
    while not deployed.exists() or deployed.read_text() != manifest.read_text():
        assert time.monotonic() < deadline, "what was deployed does not run"
        time.sleep(0.1)

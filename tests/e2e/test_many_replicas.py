"""Replicas by the manifest for Kubernetes: requests are answered at home, whatever happens to replicas, and none fails.

On one machine, without Ray's autoscaler: as many replicas as the bounds of the autoscaling configuration say. A replica
of a private cluster that ends has no time in which others stop asking it, so there must be another one. In pods, and by
load: test_pods.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from ken_core import open_file
from serving.launch.server_process import ServerProcess
from serving.store import Store
from tests.e2e.conftest import PublishedTask
from tests.e2e.forwarding import Forwarder, forwarding
from tests.e2e.from_manifest import serve_config
from tests.e2e.replicas import (
    await_deployed,
    await_replicas,
    deploy,
    on_this_machine,
    replicas,
    running_at_once,
    update,
)
from tests.e2e.running import settings_on

pytestmark = pytest.mark.e2e
NAMESPACE = "many-replicas"
COPIES = 3
"""As many tasks are made of each fine-tune."""


@dataclass
class Load:
    """Clients that ask all the while, and what they saw."""

    server: ServerProcess
    digests: dict[str, str]
    failures: list[str] = field(default_factory=list)
    answered_by: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    answers: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, seed: int) -> None:
        dice = random.Random(seed)
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            while not self.stop.is_set():
                task = dice.choice(sorted(self.digests))
                answer = self._one(client, task, dice.randrange(3))
                if answer.status_code != 200 or answer.headers["x-ken-delta"] != self.digests[task]:
                    self.failures.append(f"{task}: {answer.status_code} {answer.text[:200]} {dict(answer.headers)}")
                else:
                    self.answered_by[task].add(answer.headers["x-ken-replica"])
                    self.answers += 1

    def _one(self, client: httpx.Client, task: str, way: int) -> httpx.Response:
        """Names the task in the path, in a header, or in the body."""
        body = {"inputs": "Stocks fell sharply on Monday."}
        if way == 1:
            return client.post("/predict", json=body, headers={"X-Ken-Task": task})
        if way == 2:
            return client.post("/predict", json=body | {"model": task})
        return client.post(f"/v1/tasks/{task}/predict", json=body)

    def seconds(self, seconds: float) -> dict[str, set[str]]:
        """Who answered each task, within so many seconds from now, or more until each was answered."""
        self.answered_by.clear()
        deadline = time.monotonic() + 30
        time.sleep(seconds)
        while len(self.answered_by) < len(self.digests) and time.monotonic() < deadline:
            time.sleep(0.1)
        return {task: set(names) for task, names in list(self.answered_by.items())}

    def await_homes(self, store: Store, on: int) -> dict[str, tuple[str, ...]]:
        """Wait until all tasks are answered by their homes alone, which are on so many replicas. Returns the homes."""
        deadline = time.monotonic() + 120
        while True:
            before, found, after = store.placements.read(), self.seconds(2), store.placements.read()
            assert self.failures == []
            assert before is not None
            homes = {task: placed.homes for task, placed in before.tasks.items()}
            at_home = all(found.get(task, set()) <= set(homes[task]) for task in self.digests)
            everywhere = {home for names in homes.values() for home in names}
            if before == after and found.keys() == self.digests.keys() and at_home and len(everywhere) == on:
                return homes
            assert time.monotonic() < deadline, (found, homes)


@contextmanager
def loaded(server: ServerProcess, digests: dict[str, str]) -> Iterator[Load]:
    load = Load(server, digests)
    threads = [threading.Thread(target=load.ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def process_of(store: Store, replica: str) -> int:
    return int(store.replicas.reports()[replica].process.split()[0])


@pytest.fixture
def way(store_url: str) -> Iterator[Forwarder]:
    with forwarding(store_url) as forwarder:
        yield forwarder


def test_replicas_are_added_killed_cut_off_taken_away_and_replaced_and_no_request_fails(
    minilm: Path, work: Path, tmp_path: Path, store_url: str, published: list[PublishedTask], way: Forwarder
) -> None:
    store = Store(store_url, NAMESPACE)
    digests = {f"{task.name}-{i}": task.digest for task in published for i in range(COPIES)}
    for task in published:
        for i in range(COPIES):
            store.tasks.publish(f"{task.name}-{i}", open_file(task.file))
    settings = settings_on(minilm, work / "server", way.url)
    settings |= {"data_dir": str(tmp_path), "replicas": "2", "namespace": NAMESPACE, "placement_seconds": "2"}
    config = on_this_machine(serve_config(), settings)
    config["applications"][0]["args"] |= {"placement_seconds": 2, "request_timeout_seconds": 30}
    deploy(config, 2, tmp_path)
    with ServerProcess(settings, tmp_path / "log", module="tests.e2e.from_manifest") as server:
        await_deployed(tmp_path)
        first = await_replicas(server, 2)
        with loaded(server, digests) as load:
            deploy(config, 3, tmp_path)
            assert first < await_replicas(server, 3)
            homes = load.await_homes(store, on=3)

            (killed, *_) = homes[min(homes)]
            old = process_of(store, killed)
            os.kill(old, signal.SIGKILL)
            await_(lambda: len(replicas(server)) == 3 and old not in replicas(server))
            homes = load.await_homes(store, on=3)
            assert load.failures == []

            (cut, *_) = homes[min(homes)]
            way.cut_off(process_of(store, cut))
            await_(lambda: cut not in store.placements.read().replicas)
            assert all(cut not in names for names in load.await_homes(store, on=2).values())
            way.restore()
            load.await_homes(store, on=3)
            assert load.failures == []

            deploy(config, 2, tmp_path)
            left = await_replicas(server, 2)
            load.await_homes(store, on=2)

            update(config, tmp_path)
            assert len(running_at_once(server, left)) > len(left), "an old replica ended before a new one was there"
            load.await_homes(store, on=2)
        assert load.failures == []
        assert load.answers > 100
        placement = httpx.get(f"{server.url}/readyz").json()["placement"]
        assert placement["enforced"] is True, placement

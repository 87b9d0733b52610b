"""Clients that ask through the Service all the while, and whether they got what they should."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.e2e.pods.kubelet import Endpoints, Pod

_REQUESTS_A_CONNECTION = 20
_CLIENT_SECONDS = 60
"""After so long clients give up: longer than HAProxy waits for a replica."""
_PAUSE_SECONDS = 0.05
"""Between a client's requests, so that clients do not take all of a small machine."""


@dataclass(frozen=True)
class Failure:
    at: float
    """Seconds from the part's beginning to the request's."""
    task: str
    pod: str
    what: str
    seconds: float


@dataclass
class Seen:
    """What the clients saw of the requests that they began during a part of a run."""

    name: str
    about: str = ""
    """The pod that something is done to."""
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    open: int = 0
    """Requests that have not ended."""
    answers: int = 0
    slowest: float = 0.0
    failures: list[Failure] = field(default_factory=list)


class Load:
    """Clients with connections through the Service. A connection whose endpoint leaves is given up, as proxies do.

    Args:
        digests: the digests that may answer, by task. A test changes them while a version is promoted.
    """

    def __init__(self, endpoints: Endpoints, token: str, digests: dict[str, set[str]]) -> None:
        self._endpoints, self._token, self.digests = endpoints, token, digests
        self._tasks = sorted(digests)
        self._weights = [1 / rank for rank in range(1, len(self._tasks) + 1)]  # Zipf
        self._threads: list[tuple[threading.Thread, threading.Event]] = []
        self._lock = threading.Lock()
        self._seen = self.between = Seen("between the parts")

    @contextmanager
    def part(self, name: str) -> Iterator[Seen]:
        """What is seen of the requests that begin within the block. It ends with the last of them."""
        with self._lock:
            self._seen = found = Seen(name)
        yield found
        with self._lock:
            self._seen = self.between
        while found.open:
            time.sleep(0.1)
        found.seconds = time.monotonic() - found.began

    def clients(self, number: int) -> None:
        """From now on so many clients."""
        while len(self._threads) < number:
            stop = threading.Event()
            thread = threading.Thread(target=self._ask, args=(len(self._threads), stop), daemon=True)
            thread.start()
            self._threads.append((thread, stop))
        leaving, self._threads = self._threads[number:], self._threads[:number]
        for _, stop in leaving:
            stop.set()
        for thread, _ in leaving:
            thread.join()

    def _ask(self, seed: int, stop: threading.Event) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            pod = self._endpoints.any(dice)
            with httpx.Client(base_url=f"http://{pod.address}:8000", timeout=_CLIENT_SECONDS) as client:
                client.headers["Authorization"] = f"Bearer {self._token}"
                for _ in range(_REQUESTS_A_CONNECTION):
                    if stop.is_set() or pod not in self._endpoints.ready():
                        break
                    self._one(client, pod, dice.choices(self._tasks, self._weights)[0])
                    time.sleep(_PAUSE_SECONDS)

    def _one(self, client: httpx.Client, pod: Pod, task: str) -> None:
        with self._lock:
            seen, began, allowed = self._seen, time.monotonic(), set(self.digests[task])
            seen.open += 1
        try:
            answer = client.post(f"/v1/tasks/{task}/predict", json={"inputs": "Stocks fell sharply on Monday."})
            what = "" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:200]}"
            digest = answer.headers.get("x-ken-delta", "")
        except httpx.HTTPError as error:
            what, digest = repr(error), ""
        took = time.monotonic() - began
        if not what and digest not in allowed | self.digests[task]:
            what = f"answered by {digest[:12]}"
        with self._lock:
            seen.open -= 1
            seen.answers += not what
            seen.slowest = max(seen.slowest, took)
            if what:
                seen.failures.append(Failure(began - seen.began, task, pod.name, what, took))

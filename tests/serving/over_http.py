"""A service behind a real HTTP server, for clients that bring their own transport."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from holding import Blocked

from serving.api import create_app
from serving.service import Service


@dataclass(frozen=True)
class Served:
    """A service and the URL it answers under."""

    service: Service
    url: str

    def native(self, task: str, inputs: Any, parameters: dict[str, Any] | None = None, kind: str | None = None) -> Any:
        """What the native protocol answers, one output an input."""
        body = {"inputs": inputs, "parameters": parameters or {}, "kind": kind}
        answer = self.post(f"/v1/tasks/{task}/predict", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["outputs"]

    def post(self, path: str, **request: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=30, **request)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=30)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within it, as many inputs wait as may."""
        waiting = self.service.settings.queue_rows
        request = {"json": {"inputs": ["rain"] * waiting}}
        with ThreadPoolExecutor(1) as elsewhere, Blocked(self.service.engine):
            elsewhere.submit(self.post, "/v1/tasks/spam/predict", **request)
            deadline = time.monotonic() + 20
            while self.service.engine.waiting < waiting:
                assert time.monotonic() < deadline, "the queue did not fill in time"
                time.sleep(0.002)
            yield

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Within it, the service is stopping."""
        self.service.admission.draining = True
        try:
            yield
        finally:
            self.service.admission.draining = False


def alike(got: Any, expected: Any) -> bool:
    """Whether two answers are the same JSON but for what numbers lose in a batch of other rows."""
    match expected:
        case dict():
            return got.keys() == expected.keys() and all(alike(got[name], expected[name]) for name in expected)
        case list():
            return len(got) == len(expected) and all(map(alike, got, expected))
        case float():
            return math.isclose(got, expected, abs_tol=1e-5)
        case _:
            return bool(got == expected)


@contextmanager
def served(service: Service) -> Iterator[Served]:
    """Within it, the service answers on a port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.005)
        yield Served(service, f"http://127.0.0.1:{listening.getsockname()[1]}")
        server.should_exit = True
        thread.join(20)

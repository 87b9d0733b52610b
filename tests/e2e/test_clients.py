"""Clients that hang up, stop sending or send slowly must not disturb other clients."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.launch.server_process import ServerProcess
from tests.e2e.conftest import PublishedTask

pytestmark = pytest.mark.e2e

HANGING = 32
STALLED = 100
"""The number of clients that send half a body, and of clients that send their headers slowly."""


def headers_of(task: PublishedTask, length: int) -> bytes:
    return (
        f"POST /v1/tasks/{task.name}/predict HTTP/1.1\r\nHost: ken\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def connected(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def metric(server: ServerProcess, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=30).text)
    samples = (s for family in families for s in family.samples if s.name == name)
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.1)


def all_answered(server: ServerProcess, tasks: list[PublishedTask], requests: int) -> bool:
    with (
        httpx.Client(base_url=server.url, timeout=120) as client,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):

        def ask(i: int) -> int:
            task = tasks[i % len(tasks)]
            return client.post(f"/v1/tasks/{task.name}/predict", json={"inputs": task.texts[i % 50]}).status_code

        return set(pool.map(ask, range(requests))) == {200}


@pytest.mark.parametrize("together", [True, False], ids=["headers with body", "body after headers"])
def test_inputs_of_clients_that_hang_up_are_dropped_before_they_are_computed(
    together: bool, server: ServerProcess, published: list[PublishedTask]
) -> None:
    """Clients send more inputs than can be computed before they hang up. Bodies fit the proxy's buffer, as most do."""
    task = published[0]
    body = json.dumps({"inputs": [" ".join(task.texts)[:2000]] * 16}).encode()
    assert all_answered(server, [task], 1)
    gone = metric(server, "ken_requests_total", code="499")
    dropped = metric(server, "ken_dropped_rows_total", reason="abandoned")
    computed = metric(server, "ken_batch_rows_sum")
    with ExitStack() as hanging:
        for _ in range(HANGING):
            one = hanging.enter_context(connected(server))
            if together:
                one.sendall(headers_of(task, len(body)) + body)
            else:
                one.sendall(headers_of(task, len(body)))
                time.sleep(0.05)
                one.sendall(body)
        eventually(lambda: metric(server, "ken_queue_rows") > 100)
    assert all_answered(server, published[1:], 20)
    eventually(lambda: metric(server, "ken_queue_rows") == 0 == metric(server, "ken_requests_in_flight") - 1)
    assert metric(server, "ken_requests_total", code="499") - gone > HANGING / 2
    assert metric(server, "ken_dropped_rows_total", reason="abandoned") - dropped > (
        metric(server, "ken_batch_rows_sum") - computed
    )


@contextmanager
def stalled_clients(server: ServerProcess, task: PublishedTask) -> Iterator[list[socket.socket]]:
    """Clients that stop after half a body, and clients that send one byte of their headers each second. All of them."""
    body = json.dumps({"inputs": task.texts[:20]}).encode()
    request = headers_of(task, len(body)) + body
    with ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as pool:
        halves = [stack.enter_context(connected(server)) for _ in range(STALLED)]
        for one in halves:
            one.sendall(request[: -len(body) // 2])
        dripping = [stack.enter_context(connected(server)) for _ in range(STALLED)]
        over = False

        def drip() -> None:
            for byte in request:
                for one in dripping:
                    with suppress(OSError):  # the proxy has disconnected it
                        one.send(bytes([byte]))
                deadline = time.monotonic() + 1
                while time.monotonic() < deadline:
                    if over:
                        return
                    time.sleep(0.02)

        dripped = pool.submit(drip)
        try:
            yield halves + dripping
        finally:
            over = True
        dripped.result()


def test_clients_that_stall_or_drip_do_not_change_the_others_success(
    server: ServerProcess, published: list[PublishedTask]
) -> None:
    for _ in range(5):  # a head that takes longer than 20 seconds is no longer waited for
        with stalled_clients(server, published[0]) as stalled:
            assert all_answered(server, published, 20)
            assert all(map(is_connected, stalled)), "they were there all the while"
            eventually(lambda: metric(server, "ken_requests_in_flight") == 1)  # requests reach a replica when whole


def is_connected(client: socket.socket) -> bool:
    """Whether nothing came back, not even the end of the connection."""
    client.setblocking(False)
    try:
        client.recv(1)
    except BlockingIOError:
        return True
    return False

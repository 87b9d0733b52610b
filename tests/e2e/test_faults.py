"""Processes of a server are killed or stand still: what clients see meanwhile, and what is left afterwards."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from serving.launch.server_process import ServerProcess
from serving.store.urls import connect
from tests.e2e.running import processes_of, settings_on, still_running

pytestmark = pytest.mark.e2e
REFUSED = -1
"""Stands for a connection that was refused or cut."""


@pytest.fixture(scope="module")
def server(minilm: Path, tmp_path_factory: pytest.TempPathFactory, store_url: str) -> Iterator[ServerProcess]:
    """One server for all faults that it recovers from, and last for the one that ends it."""
    folder = tmp_path_factory.mktemp("faults")
    settings = {**settings_on(minilm, folder / "data", store_url), "request_timeout_seconds": "1"}
    with ServerProcess(settings, folder / "log") as running:
        deadline = time.monotonic() + 60
        while "ready on" not in log_of(running):
            assert time.monotonic() < deadline, log_of(running)
            time.sleep(0.1)
        yield running


def log_of(server: ServerProcess) -> str:
    assert server.log is not None
    return server.log.read_text()


def one_of(server: ServerProcess, name: str) -> psutil.Process:
    """The server's process whose program has a name, or whose title begins with it."""
    alive = [p for p in processes_of(server) if p.status() != psutil.STATUS_ZOMBIE]
    (found,) = [p for p in alive if p.name() == name or " ".join(p.cmdline()).startswith(name)]
    return found


def ask_until(server: ServerProcess, last: Callable[[int], bool]) -> list[httpx.Response | int]:
    """Answers, each on a connection of its own, until one has the status looked for."""
    seen: list[httpx.Response | int] = []
    deadline = time.monotonic() + 90
    while not (seen and last(status(seen[-1]))):
        assert time.monotonic() < deadline, [status(one) for one in seen[-5:]]
        try:
            seen.append(httpx.get(f"{server.url}/readyz", timeout=20))
        except httpx.TransportError:
            seen.append(REFUSED)
        time.sleep(0.02)
    return seen


def status(answer: httpx.Response | int) -> int:
    return answer if isinstance(answer, int) else answer.status_code


def fall_and_rise(server: ServerProcess) -> set[int]:
    """The statuses from a fault until the server answers again. Every 503 says when to come back, as a problem."""
    answers = ask_until(server, lambda status: status != 200) + ask_until(server, lambda status: status == 200)
    for answer in answers:
        if isinstance(answer, httpx.Response) and answer.status_code == 503:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["retry-after"] in ("1", "5")  # a replica's own, or HAProxy's
            assert answer.json()["status"] == 503
    return {status(answer) for answer in answers}


def refuses(server: ServerProcess) -> bool:
    """Whether nothing listens on the server's port any more."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) != 0


def has_accepted(server: ServerProcess, client: socket.socket) -> bool:
    """Whether HAProxy has taken a client's connection, which the kernel would reset with the port otherwise."""
    with suppress(psutil.NoSuchProcess):  # others of Ray's may end meanwhile
        proxies = [process for process in processes_of(server) if process.name() == "haproxy"]
        return client.getsockname() in [tuple(c.raddr) for proxy in proxies for c in proxy.net_connections("tcp")]
    return False


@pytest.mark.parametrize("name", ["haproxy", "ray::HAProxyManager"])
def test_a_killed_proxy_is_replaced_and_no_route_is_said_to_be_unknown(name: str, server: ServerProcess) -> None:
    one_of(server, name).kill()
    assert fall_and_rise(server) <= {200, 503, REFUSED}


def test_without_a_replica_clients_are_told_to_come_back_in_the_form_that_they_read(server: ServerProcess) -> None:
    one_of(server, "ray::ServeReplica").kill()
    ask_until(server, lambda status: status == 503)
    openai, kserve = httpx.get(f"{server.url}/v1/models"), httpx.get(f"{server.url}/v2/models/news")
    assert (openai.status_code, kserve.status_code) == (503, 503)
    assert openai.headers["retry-after"] == kserve.headers["retry-after"] == "5"
    assert openai.json()["error"]["type"] == "server_error"
    assert "replica" in kserve.json()["error"]
    assert fall_and_rise(server) <= {200, 502, 503}


def test_a_request_to_a_replica_that_stands_still_ends(server: ServerProcess) -> None:
    """As if its node were lost: nothing answers, and nothing refuses."""
    replica = one_of(server, "ray::ServeReplica")
    replica.suspend()
    try:
        answer = httpx.post(f"{server.url}/v1/tasks/news/predict", json={"inputs": "x"}, timeout=60)
    finally:
        replica.kill()
    assert answer.status_code == 504
    assert answer.json()["status"] == 504
    fall_and_rise(server)


def test_a_server_whose_node_died_answers_what_it_has_accepted_and_ends(server: ServerProcess) -> None:
    """Whether it is also told to stop or not."""
    processes = processes_of(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as asking:
        asking.sendall(b"POST /v1/tasks/of-nobody/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{")
        deadline = time.monotonic() + 60
        while not has_accepted(server, asking):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        one_of(server, "raylet").kill()
        deadline = time.monotonic() + 60
        while not refuses(server):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        server.process.terminate()
        asking.sendall(b'"inputs": "x"}')
        answer = asking.recv(1000)  # by the application, which need not load anything
        assert answer.startswith(b"HTTP/1.1 404"), answer
    assert server.process.wait(60) == 1
    assert still_running(processes) == []
    assert "raylet, a process of Ray's, has ended" in log_of(server)


def test_nothing_is_left_of_a_server_whose_supervisor_was_killed(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary directory's path is so long that no socket fits below it."""
    temporary = tmp_path / ("x" * 80)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    settings = settings_on(minilm, tmp_path / "data", "")
    del settings["redis_url"]
    with ServerProcess(settings, tmp_path / "log") as server:
        processes = processes_of(server)
        store = connect(f"unix://{(tmp_path / 'data/store/socket').read_text()}")
        assert store.ping()
        server.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert alive == []
        with pytest.raises(redis.ConnectionError):
            store.ping()


def test_a_stop_before_the_server_says_that_it_is_ready_drains_it(minilm: Path, tmp_path: Path, store_url: str) -> None:
    settings = settings_on(minilm, tmp_path / "data", store_url)
    server = ServerProcess(settings, tmp_path / "log", module="tests.e2e.told_to_stop_early")
    server.start()
    assert server.process.wait(120) == 0, log_of(server)
    assert "letting accepted requests finish" in log_of(server)
    assert '"stopped"' in log_of(server)

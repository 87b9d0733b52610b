"""Starting, stopping, and a store that goes down and comes back. Each test starts its own server."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from serving.launch.ports import free_port
from serving.launch.server_process import ServerProcess
from serving.store.embedded import embedded_store
from tests.e2e.conftest import PublishedTask, publish_all
from tests.e2e.running import processes_of, server_on, still_running

pytestmark = pytest.mark.e2e
CLOSED = -1
"""Stands for a connection that ended without an answer, for a request sent after the server was told to stop."""


def run_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("KEN_", "RAY_"))}
    command = [sys.executable, "-m", "serving.cli", "serve", *arguments]
    return subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True, timeout=120)


@contextmanager
def own_store(folder: Path) -> Iterator[tuple[str, redis.Redis]]:
    with embedded_store(folder) as url:
        yield url, redis.Redis.from_url(url)


def test_stopping_under_load_answers_what_was_accepted_and_leaves_no_process(
    server: ServerProcess, minilm: Path, tmp_path: Path, store_url: str, published: list[PublishedTask]
) -> None:
    """Runs beside the shared server, since two servers on one machine must not disturb each other."""
    with server_on(minilm, tmp_path / "data", store_url, tmp_path / "log") as second:
        processes = processes_of(second)
        assert len(processes) > 3
        statuses: list[int] = []
        stopping = time.monotonic() + 1.0

        def ask(i: int) -> None:
            task = published[i % 3]
            texts = task.texts[:8]
            tensor = {"name": "text", "shape": [8], "datatype": "BYTES", "data": texts}
            path, body = [
                (f"/v1/tasks/{task.name}/predict", {"inputs": texts}),
                (f"/v2/models/{task.name}/infer", {"inputs": [tensor]}),
            ][i % 2]
            with httpx.Client(base_url=second.url, timeout=30) as client:
                while second.process.poll() is None:
                    began = time.monotonic()
                    try:
                        response = client.post(path, json=body)
                        statuses.append(response.status_code)
                    except httpx.ConnectError:
                        return  # nothing listens any more, so the request was never accepted
                    except httpx.TransportError:
                        statuses.append(0 if began < stopping else CLOSED)
                    if statuses[-1] in (503, CLOSED):
                        assert began > stopping - 1
                        time.sleep(0.05)
                    if statuses[-1] == 404:
                        return

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            work = [pool.submit(ask, i) for i in range(8)]
            time.sleep(max(0.0, stopping - time.monotonic()))
            second.process.send_signal(signal.SIGTERM)
            code = second.process.wait(60)
            for w in work:
                w.result()
        assert code == 0, (tmp_path / "log").read_text()
        assert 200 in statuses
        assert set(statuses) <= {200, 503, CLOSED}, sorted(set(statuses))
        assert "cut off" not in (tmp_path / "log").read_text()
        assert still_running(processes) == []
    assert httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200


def test_the_store_may_go_and_come_while_cached_tasks_are_served_on(
    minilm: Path, tmp_path: Path, published: list[PublishedTask]
) -> None:
    cached, uncached = published[0], published[1]
    with own_store(tmp_path / "store") as (url, store):
        publish_all(url, published)
        with server_on(minilm, tmp_path / "data", url, tmp_path / "log") as server:
            body = {"inputs": "some text"}
            first = httpx.post(f"{server.url}/v1/tasks/{cached.name}/predict", json=body, timeout=60)
            assert first.status_code == 200
            store.shutdown(nosave=True)
            still = httpx.post(f"{server.url}/v1/tasks/{cached.name}/predict", json=body, timeout=60)
            gone = httpx.post(f"{server.url}/v1/tasks/{uncached.name}/predict", json=body, timeout=60)
            assert still.status_code == 200
            assert still.json()["outputs"] == first.json()["outputs"]
            assert gone.status_code == 503
            assert int(gone.headers["retry-after"]) >= 1
        # Started again with the store still down: the disk holds the task table and one delta.
        with server_on(minilm, tmp_path / "data", url, tmp_path / "log2") as server:
            again = httpx.post(f"{server.url}/v1/tasks/{cached.name}/predict", json=body, timeout=60)
            assert again.json()["outputs"] == first.json()["outputs"]
            assert httpx.post(f"{server.url}/v1/tasks/{uncached.name}/predict", json=body).status_code == 503


def test_without_store_and_without_anything_on_disk_the_start_fails_with_a_clear_line(
    minilm: Path, tmp_path: Path
) -> None:
    url = f"redis://user:secret@127.0.0.1:{free_port()}"
    ended = run_serve("--base", str(minilm), "--redis-url", url, "--data-dir", str(tmp_path))
    assert ended.returncode == 1
    assert "does not answer" in ended.stderr
    assert "secret" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_said_at_once(minilm: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_serve("--base", str(minilm), "--port", str(port), "--data-dir", str(tmp_path))
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr


def test_a_base_that_is_missing_or_has_no_weights_is_named(tmp_path: Path) -> None:
    missing = run_serve("--base", str(tmp_path / "nowhere"), "--data-dir", str(tmp_path), "--port", str(free_port()))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow/config.json").write_text('{"model_type": "bert"}')
    hollow = run_serve("--base", str(tmp_path / "hollow"), "--data-dir", str(tmp_path), "--port", str(free_port()))
    assert (missing.returncode, hollow.returncode) == (1, 1)
    assert "no such folder" in missing.stderr
    assert "no weights" in hollow.stderr


def test_a_damaged_base_ends_the_start_with_the_replicas_own_reason(minilm: Path, tmp_path: Path) -> None:
    base = tmp_path / "damaged"
    base.mkdir()
    for file in minilm.glob("*.json"):
        (base / file.name).write_bytes(file.read_bytes())
    (base / "model.safetensors").write_bytes((minilm / "model.safetensors").read_bytes()[:1_000_000])
    ended = run_serve("--base", str(base), "--data-dir", str(tmp_path / "data"), "--port", str(free_port()))
    assert ended.returncode == 1
    assert "the base cannot be served" in ended.stderr
    assert "Traceback" not in ended.stderr.splitlines()[-1]


def test_ctrl_c_during_the_start_leaves_no_process(minilm: Path, tmp_path: Path, store_url: str) -> None:
    server = server_on(minilm, tmp_path / "data", store_url, tmp_path / "log")
    server.start()
    seen: dict[int, psutil.Process] = {}
    deadline = time.monotonic() + 30
    while len(seen) < 6 and time.monotonic() < deadline and server.process.poll() is None:
        seen |= {p.pid: p for p in processes_of(server)}
        time.sleep(0.05)
    assert len(seen) >= 6, (tmp_path / "log").read_text()
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(60) == 1
    assert still_running(list(seen.values())) == []
    assert "before it was ready" in (tmp_path / "log").read_text()

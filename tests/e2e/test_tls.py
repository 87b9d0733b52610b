"""HTTPS with keys on an address that other machines reach, and starts that are refused there."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path

import httpx
import psutil
import pytest

from serving.launch.haproxy_binary import find_haproxy
from serving.launch.server_process import ServerProcess
from serving.security.keys import new_key
from tests.certificates import self_signed
from tests.e2e.conftest import PublishedTask, publish_all
from tests.e2e.listening import reachable
from tests.e2e.running import settings_on, still_running

pytestmark = pytest.mark.e2e


def make_pair(folder: Path) -> dict[str, str]:
    """Settings that name a self-signed certificate for 127.0.0.1 and its key."""
    cert, key = self_signed(folder)
    return {"tls_cert": str(cert), "tls_key": str(key)}


def await_ready(client: httpx.Client, server: ServerProcess, log: Path) -> None:
    """Wait until the server answers and its launcher has said that it is ready. The replica answers a moment earlier; a
    launcher that is told to stop in between says that the start was broken off."""
    deadline = time.monotonic() + 120
    while True:
        assert server.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if client.get("/readyz").status_code == 200 and "ready on" in log.read_text():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def metrics_ports(client: httpx.Client) -> set[int]:
    """The metrics ports of all replicas on the store, which Prometheus reads from another machine."""
    return {
        int(target.rpartition(":")[2]) for group in client.get("/metrics/targets").json() for target in group["targets"]
    }


def refused(settings: dict[str, str], log: Path) -> str:
    """The log of a server that does not start."""
    server = ServerProcess(settings, log)
    server.start()
    assert server.process.wait(60) == 1
    return log.read_text()


@pytest.mark.parametrize("module", ["serving.cli", pytest.param("tests.e2e.without_haproxy", marks=pytest.mark.slow)])
def test_a_server_that_others_reach_starts_with_keys_only_and_answers_their_holders_over_tls(
    module: str, minilm: Path, tmp_path: Path, store_url: str, published: list[PublishedTask]
) -> None:
    publish_all(store_url, published)
    log = tmp_path / "log"
    open_to_others = settings_on(minilm, tmp_path / "data", store_url) | {"host": "0.0.0.0"}
    assert "ken keys create" in refused(open_to_others, tmp_path / "log-no-keys")

    key, token = new_key("app", ["predict"], ["news"])
    (tmp_path / "keys.json").write_text(json.dumps([key.record()]))
    settings = open_to_others | make_pair(tmp_path) | {"keys_file": str(tmp_path / "keys.json")}
    mismatch = settings | {"tls_key": settings["tls_cert"]}
    assert "expected PEM files" in refused(mismatch, tmp_path / "log-mismatch")

    server = ServerProcess(settings, log, module=module)
    server.start()
    try:
        trust = ssl.create_default_context(cafile=settings["tls_cert"])
        with httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=trust, timeout=60) as client:
            await_ready(client, server, log)
            children = psutil.Process(server.process.pid).children(recursive=True)
            body = {"inputs": "some text"}
            answer = client.post("/v1/tasks/news/predict", json=body, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 200, answer.text
            opened = reachable(server)
            assert server.port in opened
            assert set(opened) - {server.port} <= metrics_ports(client), opened
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{server.port}/readyz", timeout=10)
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"https://127.0.0.1:{server.port}/readyz", timeout=10)
    finally:
        code = server.stop()
    assert code == 0, log.read_text()
    assert still_running(children) == []
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["message"] for line in lines]
    assert any("proxy serves" in message for message in said) == (module != "serving.cli" or find_haproxy() is None)
    assert any(message.startswith(f"ready on https://0.0.0.0:{server.port}") for message in said)
    assert {"serving.launch.announcing", "serving.service"} <= {line["logger"] for line in lines}
    assert token not in log.read_text()

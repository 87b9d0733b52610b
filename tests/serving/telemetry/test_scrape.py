"""A port for each replica's metrics, and the list of these ports for Prometheus."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.encoders import jsonable_encoder
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import StartError
from serving.launch.ports import free_port
from serving.telemetry.metrics import Metrics
from serving.telemetry.scrape import ScrapePort, targets

Open = Callable[..., ScrapePort]


@pytest.fixture
def open_port() -> Iterator[Open]:
    """Serves the metrics of a replica with the given name. All ports are closed at the end of the test."""
    with ExitStack() as opened:

        def run(replica: str = "r", host: str = "127.0.0.1", port: int = 0) -> ScrapePort:
            made = ScrapePort(Metrics(replica).registry, host, port)
            opened.callback(made.close)
            return made

        yield run


def replicas_at(address: str, accept: str = "text/plain") -> set[str]:
    """The name of the replica whose metrics an address serves."""
    response = httpx.get(f"http://{address}/metrics", headers={"Accept": accept})
    assert response.status_code == 200
    text = response.text.removesuffix("# EOF\n")
    return {s.labels["replica"] for family in text_string_to_metric_families(text) for s in family.samples}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_each_replica_answers_with_its_own_metrics(open_port: Open) -> None:
    first, second = open_port("first"), open_port("second")
    assert replicas_at(first.address) == {"first"}
    assert replicas_at(second.address) == {"second"}


def test_it_speaks_the_openmetrics_that_prometheus_asks_for(open_port: Open) -> None:
    assert replicas_at(open_port("r").address, accept="application/openmetrics-text; version=1.0.0") == {"r"}


def test_a_fixed_port_is_taken(open_port: Open) -> None:
    free = free_port()
    assert open_port("r", port=free).address == f"127.0.0.1:{free}"


def test_the_second_replica_of_a_machine_takes_a_free_port_and_says_so(
    open_port: Open, caplog: pytest.LogCaptureFixture
) -> None:
    first = open_port("first")
    with caplog.at_level(logging.WARNING):
        second = open_port("second", port=port_of(first.address))
    assert replicas_at(first.address) == {"first"}
    assert replicas_at(second.address) == {"second"}
    (message,) = caplog.messages
    assert str(port_of(first.address)) in message
    assert str(port_of(second.address)) in message


def test_a_closed_port_is_free_again(open_port: Open) -> None:
    first = ScrapePort(Metrics("first").registry, "127.0.0.1", free_port())
    first.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{first.address}/metrics")
    assert open_port("second", port=port_of(first.address)).address == first.address


def test_listening_on_all_addresses_it_names_one_that_others_reach(open_port: Open) -> None:
    port = open_port("r", host="0.0.0.0")
    assert not port.address.startswith("0.")
    assert replicas_at(port.address) == {"r"}


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.77", 0), ("no-such-host.invalid", 0)], ids=["not ours", "no address"]
)
def test_an_address_nobody_can_listen_on_ends_the_start_and_names_the_setting(host: str, port: int) -> None:
    with pytest.raises(StartError, match=rf"{host}.*KEN_METRICS_HOST.*KEN_METRICS_PORT"):
        ScrapePort(Metrics("r").registry, host, port)


# The list


def as_answered(addresses: dict[str, str]) -> Any:
    """The list as FastAPI serves it."""
    return jsonable_encoder(targets(addresses))


def test_the_list_names_every_replica_that_said_where_it_is() -> None:
    addresses = {"b": "10.0.0.2:9000", "a": "10.0.0.1:41000", "silent": ""}
    assert as_answered(addresses) == [
        {"targets": ["10.0.0.1:41000"], "labels": {"replica": "a"}},
        {"targets": ["10.0.0.2:9000"], "labels": {"replica": "b"}},
    ]
    assert as_answered({}) == []


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """The address of a server that answers every GET with some JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_discovers_the_replicas_with_the_configuration_of_deploy(tmp_path: Path) -> None:
    config = (Path(__file__).resolve().parents[3] / "deploy/prometheus/prometheus.yml").read_text()
    assert "server:8000" in config
    body = json.dumps(as_answered({"a": "10.0.0.1:41000", "b": "[fd00::2]:9000"})).encode()
    with answering(body) as address:
        (tmp_path / "prometheus.yml").write_text(config.replace("server:8000", address).replace("- alerts.yml", ""))
        done = subprocess.run(
            ["promtool", "check", "service-discovery", "--timeout=3s", "prometheus.yml", "ken-serve"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {(d["labels"]["replica"], d["labels"]["__address__"]) for d in json.loads(done.stdout)}
    assert found == {("a", "10.0.0.1:41000"), ("b", "[fd00::2]:9000")}
    assert {d["labels"]["__metrics_path__"] for d in json.loads(done.stdout)} == {"/metrics"}

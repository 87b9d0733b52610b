"""The port that Serve opens in each replica for other deployments."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from serving.errors import StartError
from serving.security.loopback import keep_to_loopback

pytest.importorskip("ray", reason="ray is not installed")
grpc = pytest.importorskip("grpc", reason="grpc comes with ray[serve]")


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve's module, which is restored after the test."""
    from ray.serve._private import replica

    monkeypatch.setattr(replica, "add_port_to_grpc_server", replica.add_port_to_grpc_server)
    return replica


@pytest.fixture
def server() -> Iterator[Any]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        yield server
        server.stop(None).wait()


def at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: address)


def heard(port: int) -> set[str]:
    connections = psutil.Process().net_connections("tcp")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


@pytest.mark.parametrize(
    ("node", "expected"), [("127.0.0.1", [{"127.0.0.1"}, {"::ffff:127.0.0.1"}]), ("192.0.2.7", [{"::"}])]
)
def test_it_is_on_loopback_where_the_node_is_and_on_all_addresses_elsewhere(
    node: str, expected: list[set[str]], replica: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(node, monkeypatch)
    keep_to_loopback()
    port = replica.add_port_to_grpc_server(server, "[::]:0")  # as Serve calls it
    server.start()
    assert heard(port) in expected


def test_a_port_that_is_opened_in_another_way_is_not_opened_to_everybody(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("127.0.0.1", monkeypatch)
    monkeypatch.delattr(replica, "add_port_to_grpc_server")
    with pytest.raises(StartError, match=r"install the version of ray that constraints\.txt names"):
        keep_to_loopback()

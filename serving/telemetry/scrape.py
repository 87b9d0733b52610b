"""A port for each replica's metrics, and the list of these ports for Prometheus.

A scrape through the proxy reaches any one replica. So each replica also serves its metrics on a port of its own and
reports the address to the store. Every replica serves the list of all addresses for Prometheus' HTTP service discovery:
https://prometheus.io/docs/prometheus/latest/http_sd/
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from serving.addresses import host_and_port
from serving.errors import StartError

_log = logging.getLogger(__name__)

_ELSEWHERE = "192.0.2.1", 9  # an address reserved for documentation (RFC 5737); nothing is sent to it


@dataclass(frozen=True)
class TargetGroup:
    """Targets of Prometheus, and the labels that it adds to the samples it reads from them."""

    targets: list[str]
    labels: dict[str, str]


def targets(addresses: Mapping[str, str]) -> list[TargetGroup]:
    """The body of `GET /metrics/targets`.

    Args:
        addresses: ``host:port`` of the metrics of each live replica, by its name; empty if the replica reported none.
    """
    known = sorted((replica, address) for replica, address in addresses.items() if address)
    return [TargetGroup([address], {"replica": replica}) for replica, address in known]


class ScrapePort:
    """Serves a registry over HTTP on threads of its own, from construction to `close`.

    Args:
        host: address to listen on.
        port: 0 for a free one. If the port is taken, e.g. by another replica on this machine, a free one is used too.

    Raises:
        StartError: the address cannot be listened on.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int = 0) -> None:
        self._server, self._thread = _listen(registry, host, port)
        self.address = host_and_port(_reachable(host), self._server.server_port)
        """``host:port`` for Prometheus. The host is this machine's own address if the port listens on all addresses."""

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _listen(registry: CollectorRegistry, host: str, port: int) -> tuple[WSGIServer, Thread]:
    try:
        return start_http_server(port, host, registry)
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            found = _listen(registry, host, 0)
            _log.warning("metrics port %d on %s is taken; this replica uses port %d", port, host, found[0].server_port)
            return found
        raise StartError(
            f"metrics cannot be served on {host_and_port(host, port)}: {error}; set KEN_METRICS_HOST to an address of "
            "this machine and KEN_METRICS_PORT to a port above 1023, or to 0 for a free one"
        ) from error


def _reachable(host: str) -> str:
    try:
        everywhere = ip_address(host).is_unspecified
    except ValueError:
        return host
    return _own_address() if everywhere else host


def _own_address() -> str:
    """This machine's address on its default route; loopback if it has no default route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])

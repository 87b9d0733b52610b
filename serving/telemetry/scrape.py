"""Each replica's metrics on a port of its own, and the list of all of them for Prometheus.

A scrape through the proxy reaches any one replica. So each also answers on its own port, reports that address to the
store, and every replica gives the list of addresses in the form of Prometheus' HTTP service discovery:
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

_ELSEWHERE = "192.0.2.1", 9  # set aside for documentation (RFC 5737), and nothing is sent there


@dataclass(frozen=True)
class TargetGroup:
    """Some targets and the labels that Prometheus puts on what it reads there."""

    targets: list[str]
    labels: dict[str, str]


def targets(addresses: Mapping[str, str]) -> list[TargetGroup]:
    """The body of `GET /metrics/targets`.

    Args:
        addresses: ``host:port`` of each live replica's metrics by its name; empty where it has not said.
    """
    known = sorted((replica, address) for replica, address in addresses.items() if address)
    return [TargetGroup([address], {"replica": replica}) for replica, address in known]


class ScrapePort:
    """Serves a registry over HTTP on threads of its own, from construction to `close`.

    Args:
        host: address to listen on.
        port: 0 takes a free one. So does a port that is taken, which another replica on this machine may well hold.

    Raises:
        StartError: nothing can listen there.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int = 0) -> None:
        self._server, self._thread = _listen(registry, host, port)
        self.address = host_and_port(_reachable(host), self._server.server_port)
        """``host:port`` where Prometheus finds it: this machine's own address, where it listens on all."""

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
            _log.warning("metrics port %d on %s is taken; this replica's is %d", port, host, found[0].server_port)
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
    """The address this machine is seen under by those it reaches over its default route, loopback without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])

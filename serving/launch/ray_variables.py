"""The environment variables of Ray and OpenMP that a server depends on.

Every process reads them when it imports Ray. The launcher sets them before Ray is imported. Under KubeRay there is no
launcher: the manifest sets them for the containers of head and workers, and a test compares it with this table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.config import Settings
from serving.launch.haproxy_file import CHANGE_SECONDS
from serving.launch.ports import free_ports, free_range


@dataclass(frozen=True)
class Variable:
    name: str
    value: str
    why: str


_SERVER_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
_HARD_STOP = "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"
_LATER_THAN_THE_REPLICA = 5
_LAST_REQUEST_SECONDS = 120
"""How long a HAProxy that was replaced may still be sent requests: idle connections end after 90 s."""


def server_timeout(request_timeout: float) -> str:
    """Seconds that HAProxy waits for a replica: long enough for the replica's own answer that time is up."""
    return str(math.ceil(request_timeout) + _LATER_THAN_THE_REPLICA)


def hard_stop(request_timeout: float, generation_timeout: float) -> str:
    """Seconds after which a HAProxy that another one has replaced ends, whatever it still holds: what it holds is
    answered 502. So this is long enough for the last request, be it a change or a long text, that comes to it. A
    HAProxy without connections ends at once, so a long time costs the memory of a few processes, and no more."""
    longest = max(CHANGE_SECONDS, *(int(server_timeout(timeout)) for timeout in (request_timeout, generation_timeout)))
    return str(longest + _LAST_REQUEST_SECONDS)


SHARED = (
    Variable("RAY_SERVE_ENABLE_HA_PROXY", "1", "HAProxy in front of the replicas: 20 times the stock proxy's rate"),
    Variable("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1", "no hop between threads inside a replica"),
    Variable("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1", "lets a process without an event loop call replicas"),
    Variable("RAY_SERVE_LOG_TO_STDERR", "1", "otherwise RAY_SERVE_THROUGHPUT_OPTIMIZED turns logs off"),
    Variable("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1", "log lines appear at once"),
    Variable("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response", "a killed replica's requests go to another"),
    Variable("RAY_SERVE_HAPROXY_RETRIES", "1", "one retry only: a request that kills replicas must not kill them all"),
    Variable("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", "65536", "bodies up to this size can be retried"),
    Variable(
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S",
        "60",
        "a client that sends nothing is disconnected; the default is an hour",
    ),
    Variable(
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S",
        "1",
        "Ray replaces a HAProxy that ended after three checks; the default is 10 s for each",
    ),
    Variable("RAY_worker_niceness", "0", "replicas keep their scheduling priority"),
    Variable("OMP_WAIT_POLICY", "PASSIVE", "waiting compute threads leave their cores to the event loop and HAProxy"),
    Variable("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0", "a replica sees its machine's GPUs even if it reserved none"),
    Variable("RAY_USAGE_STATS_ENABLED", "0", "Ray reports no usage statistics"),
)
"""For private clusters and for KubeRay."""

LOCAL = (
    Variable("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0", "the launcher drains replicas before Serve does"),
    Variable("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1", "a replica that fails to start is not started again"),
    Variable("RAY_AUTH_MODE", "token", "only holders of the cluster's token run code in it"),
    Variable("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0", "Ray listens on loopback; otherwise on the machine's address"),
    Variable(
        "RAY_SERVE_PORT_QUARANTINE_S",
        "150",
        "a replica's port is free again once no HAProxy that was replaced is sent requests; Ray waits until all of them"
        " have ended, too long for the few ports of a private cluster",
    ),
    Variable("RAY_DEDUP_LOGS", "0", "every line of a replica's log is shown, repeated ones too"),
)
"""Only for the private cluster of a launcher."""

_DEFAULT_SECONDS: float = Settings.model_fields["request_timeout_seconds"].default

IN_CLUSTER = (
    Variable("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "15", "load balancers need time to stop using a pod"),
    Variable(
        _SERVER_TIMEOUT,
        server_timeout(_DEFAULT_SECONDS),
        "requests to a lost node end; 5 s above the setting request_timeout_seconds",
    ),
    Variable(
        _HARD_STOP,
        hard_stop(_DEFAULT_SECONDS, Settings.model_fields["generation_timeout_seconds"].default),
        "each replica that comes or goes replaces HAProxy; the default cuts off after 120 s what the old one holds",
    ),
    Variable(
        "RAY_SERVE_SLOW_STARTUP_WARNING_S",
        "600",
        "a new head replaces the replicas that it has not reached after so long; after the loss of the head's machine"
        " it takes minutes until everybody has noticed, and the default is 30 s",
    ),
    Variable("HOME", "/home/ken", "Ray and numba write into it"),
    Variable(
        "RAY_SERVE_HAPROXY_BINARY_PATH", "/usr/local/bin/ken-haproxy", "the image's link to serving/launch/haproxy.sh"
    ),
)
"""Only for containers under KubeRay."""


def for_cluster() -> dict[str, str]:
    """The variables of KubeRay's head and worker containers."""
    return {v.name: v.value for v in (*SHARED, *IN_CLUSTER)}


def for_launcher(
    folder: Path, haproxy: Mapping[str, str] | None, request_timeout: float, generation_timeout: float
) -> dict[str, str]:
    """The variables of a private cluster. It gets its own ports and sockets, so that several clusters run side by side.

    Args:
        folder: private, with a short path, since HAProxy's sockets lie below it.
        haproxy: the variables that make Ray start HAProxy (`haproxy_start.variables`); None for Ray's stock proxy.
        request_timeout, generation_timeout: seconds that a prediction and a text may take.
    """
    values = {v.name: v.value for v in (*SHARED, *LOCAL)}
    ports = free_ports()
    first = free_range(20)
    values |= {
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 20),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(next(ports)),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(next(ports)),
        "RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0",
        # replicas' own ports: only HAProxy needs them; beside the stock proxy they would only be open
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1" if haproxy else "0",
    }
    if haproxy:
        place = folder / "h"
        values |= {
            **haproxy,
            _SERVER_TIMEOUT: server_timeout(request_timeout),
            _HARD_STOP: hard_stop(request_timeout, generation_timeout),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(next(ports)),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(next(ports)),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(place / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(place / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(place / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(place),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(place / "server-state"),
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        }
    return values


_FOREIGN = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_AUTH_TOKEN",  # takes precedence over the file with the cluster's own token
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ENABLE_K8S_TOKEN_AUTH",  # would make a token of Kubernetes valid too
)


def forget_other_clusters() -> None:
    """Remove variables that would attach this process to another cluster, or let that cluster's users into this one."""
    for name in _FOREIGN:
        os.environ.pop(name, None)

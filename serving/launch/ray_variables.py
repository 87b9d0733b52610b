"""Every variable of Ray and OpenMP this server depends on, in one table.

Ray reads them at import, in every process. Locally the launcher sets them before Ray is imported; under
KubeRay there is no launcher, so head and worker containers carry the same table (a test compares them).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.launch.ports import free_ports, free_range


@dataclass(frozen=True)
class Variable:
    name: str
    value: str
    why: str


SHARED = (
    Variable("RAY_SERVE_ENABLE_HA_PROXY", "1", "HAProxy in front of the replicas: 20 times the stock proxy's rate"),
    Variable("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1", "no hop between threads inside a replica"),
    Variable("RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP", "1", "lets a process without an event loop call replicas"),
    Variable("RAY_SERVE_LOG_TO_STDERR", "1", "throughput mode turns logs off otherwise"),
    Variable("RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE", "1", "log lines appear when they are written"),
    Variable("RAY_SERVE_HAPROXY_RETRY_ON", "conn-failure empty-response", "a killed replica's requests go to another"),
    Variable("RAY_SERVE_HAPROXY_RETRIES", "1", "once: a request that kills replicas must not kill them all"),
    Variable("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", "65536", "bodies up to this size can be retried"),
    Variable(
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S", "60", "a client that falls silent is let go; the default is an hour"
    ),
    Variable("RAY_worker_niceness", "0", "replicas are not niced"),
    Variable("OMP_WAIT_POLICY", "PASSIVE", "compute threads that wait leave their cores to the event loop and HAProxy"),
    Variable("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0", "a replica sees the GPUs of its machine, asked for or not"),
    Variable("RAY_USAGE_STATS_ENABLED", "0", "nothing is reported to anybody"),
)
"""The same on a laptop and in a cluster."""

LOCAL = (
    Variable("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0", "we drain before Serve does"),
    Variable("RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT", "1", "a start that fails, fails at once"),
    Variable("RAY_AUTH_MODE", "token", "nobody else runs code in the cluster, on this machine or another"),
    Variable("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0", "Ray listens on loopback: else it takes the machine's address"),
    Variable("RAY_DEDUP_LOGS", "0", "every line of a replica's log is shown"),
)
"""Only where the launcher owns the whole cluster."""

IN_CLUSTER = (
    Variable("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "15", "load balancers need time to let go of a pod"),
    Variable("HOME", "/home/ken", "Ray and numba write below it"),
    Variable(
        "RAY_SERVE_HAPROXY_BINARY_PATH", "/usr/local/bin/ken-haproxy", "the image's link to serving/launch/haproxy.sh"
    ),
)
"""Only in containers."""


def for_cluster() -> dict[str, str]:
    """Variables of KubeRay's head and worker containers."""
    return {v.name: v.value for v in (*SHARED, *IN_CLUSTER)}


def for_launcher(folder: Path, haproxy: Mapping[str, str] | None) -> dict[str, str]:
    """Variables of a private cluster: ports and sockets of its own, so that several run side by side.

    Args:
        folder: private, with a short path (HAProxy's sockets lie below it).
        haproxy: what has Ray start it (`haproxy_start.variables`); None leaves the stock proxy.
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
        # ports of the replicas' own, which nobody but HAProxy needs, and which would lie beside the stock proxy's
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1" if haproxy else "0",
    }
    if haproxy:
        place = folder / "h"
        values |= {
            **haproxy,
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
    "RAY_AUTH_TOKEN",  # would win over the file of the cluster's own token
    "RAY_AUTH_TOKEN_PATH",
    "RAY_ENABLE_K8S_TOKEN_AUTH",  # a token of Kubernetes would do as well
)


def forget_other_clusters() -> None:
    """Forget variables that would attach us to somebody else's cluster, or let the holders of its token into ours."""
    for name in _FOREIGN:
        os.environ.pop(name, None)

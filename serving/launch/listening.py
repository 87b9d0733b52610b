"""The address that clients connect to: as text, as a URL, and as options of HAProxy and Ray Serve."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from serving.addresses import host_and_port, url_of
from serving.config import Settings
from serving.launch.haproxy_file import Frontend


def plain_host(host: str) -> str:
    """``127.0.0.1`` for ``localhost``, which may also mean ``::1``; any other host as it is."""
    return "127.0.0.1" if host == "localhost" else host


def address(settings: Settings) -> str:
    """``host:port``, with an IPv6 address in brackets."""
    return host_and_port(plain_host(settings.host), settings.port)


def url(settings: Settings) -> str:
    """The URL of the server."""
    return url_of(plain_host(settings.host), settings.port, tls=settings.tls)


def in_front(settings: Settings) -> dict[str, Any]:
    """Serve's HTTP options if clients connect to Ray's stock proxy."""
    where = {"host": plain_host(settings.host), "port": settings.port}
    tls = {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
    return where | tls if settings.tls else where


def behind_haproxy(settings: Settings) -> dict[str, Any]:
    """Serve's HTTP options if clients connect to HAProxy. The host is loopback, since replicas open ports on it too,
    which no limit protects."""
    return {"host": "127.0.0.1", "port": settings.port}


def frontend(settings: Settings, folder: Path) -> Frontend:
    """HAProxy's frontend for the settings.

    Args:
        folder: private; the certificate and its key are written there into one file, as HAProxy reads them.
    """
    tls = f" ssl crt {_joined(settings.tls_cert, settings.tls_key, folder)} alpn http/1.1" if settings.tls else ""
    binds = tuple(f"{where}{tls}" for where in _sockets(plain_host(settings.host), settings.port))
    return Frontend(binds, settings.max_connections, settings.max_connections_per_source)


def _sockets(host: str, port: int) -> list[str]:
    """The addresses for HAProxy to bind to. A name is resolved. ``::`` listens on IPv4 too, with a socket of its own:
    otherwise all IPv4 clients would have addresses of one IPv6 network, and so count as one source."""
    if host == "::":
        return [f"0.0.0.0:{port}", f":::{port} v6only"]
    ip = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    return [f"{ip}:{port}"]


def _joined(cert: Path | None, key: Path | None, folder: Path) -> Path:
    assert cert is not None
    assert key is not None
    both = folder / "tls.pem"
    with open(both, "xb", opener=_for_the_owner_alone) as file:
        file.write(cert.read_bytes() + b"\n" + key.read_bytes())
    return both


def _for_the_owner_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

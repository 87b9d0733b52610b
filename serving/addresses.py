"""Joins and splits hosts and ports. IPv6 addresses are written in brackets (RFC 3986)."""

from __future__ import annotations


def host_and_port(host: str, port: int) -> str:
    """``127.0.0.1`` and 8000 -> ``127.0.0.1:8000``; ``::1`` -> ``[::1]:8000``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(host: str, port: int, *, tls: bool = False) -> str:
    """The URL of a server that listens on a host. The zone of a link-local address (``%eth0``) is escaped."""
    return f"{'https' if tls else 'http'}://{host_and_port(host.replace('%', '%25'), port)}"


def split_host_and_port(address: str, port: int) -> tuple[str, int]:
    """The inverse of `host_and_port`: ``[::1]:26379`` -> ``::1``, 26379.

    Args:
        port: the port if the address has none.

    Raises:
        ValueError: the port is no number, or the brackets are not closed.
    """
    if not address.startswith("["):
        host, _, named = address.partition(":")
    else:
        host, closed, rest = address[1:].partition("]")
        if not closed or rest[:1] not in ("", ":"):
            raise ValueError(f"found {address!r}, expected [address]:port")
        named = rest[1:]
    return host, int(named or port)

"""Who shares turns: the holder of a key, or else whoever has an address."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address

from fastapi import Request

from serving.security.keys import ANYONE, Principal

_ONE_SUBSCRIBER = 64
"""Bits of an IPv6 address that its holder cannot choose."""


def client_of(request: Request, who: Principal) -> str:
    """A name for whoever sent a request, equal for all requests that share turns.

    Without a key it is the address that the server was called from. HAProxy writes it into ``X-Forwarded-For`` in place
    of whatever a request says there, and uvicorn trusts a proxy on its own machine. All who come through another
    proxy, or from another node's HAProxy, share turns.
    """
    if who is not ANYONE:
        return f"key {who.name}"
    return f"address {_subscriber(request.client.host)}" if request.client else "address unknown"


def _subscriber(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((address, _ONE_SUBSCRIBER), strict=False))

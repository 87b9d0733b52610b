"""Which requests share turns: those with the same API key, or without a key those from the same address."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address

from fastapi import Request

from serving.security.keys import ANYONE, Principal

_ONE_SUBSCRIBER = 64
"""Bits of an IPv6 address that a provider gives one subscriber, who chooses the others."""


def client_of(request: Request, who: Principal) -> str:
    """A name for the client of a request. Requests with the same name share turns.

    Without a key the name is the address that the request came from. HAProxy writes that address into
    ``X-Forwarded-For``, in place of what the client wrote there, and uvicorn trusts a proxy on its own machine. All
    clients behind another proxy share turns, as do all clients behind another node's HAProxy.
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

"""How to reach a server: its URL, who asks, and the connections to it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

import httpx

from serving.client.errors import ClientError

_IDLE_SECONDS = 3.0
"""Shorter than servers wait (uvicorn: 5 s): a connection is not used in the moment in which it is closed."""


@dataclass(frozen=True)
class Address:
    """A server's URL, and the key that it is asked with.

    Raises:
        ClientError: no URL of HTTP, or a key that no header can carry.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ClientError(
                f"the server's URL is not usable: {error}; expected such as http://127.0.0.1:8000 or http://[::1]:8000"
            ) from None
        if parsed.userinfo:  # it would show in logs
            raise ClientError("the server's URL holds a user name; give a key as api_key or KEN_API_KEY instead")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ClientError(f"the server's URL is {self.url!r}; expected such as http://127.0.0.1:8000")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ClientError("the API key is empty or holds characters that no key has, e.g. a line's end")

    def options(self, verify: ssl.SSLContext | bool) -> dict[str, Any]:
        """Arguments of httpx's clients. How many connections there are, the caller's concurrency decides."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_SECONDS)
        return {"base_url": self.url, "headers": headers, "verify": verify, "limits": limits}

"""The address of a server: its URL, the API key to send, and the options of the connections."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

import httpx

from ken_core.version import __version__
from serving.client.errors import ClientError

_IDLE_SECONDS = 3.0
"""How long an idle connection is kept. Servers keep it longer (uvicorn: 5 s), so no request is sent on a connection
that the server is closing."""
_USER_AGENT = f"ken-serve-client/{__version__} httpx/{httpx.__version__}"


@dataclass(frozen=True)
class Address:
    """A server's URL and the API key to send with each request.

    Raises:
        ClientError: the URL is no HTTP URL, or no header can carry the key.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            parsed = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ClientError(
                f"the server's URL is not usable: {error}; expected one like http://127.0.0.1:8000 or http://[::1]:8000"
            ) from None
        if parsed.userinfo:  # a password in the URL would show in logs
            raise ClientError("the server's URL holds a user name; remove it and give a key as api_key or KEN_API_KEY")
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
            raise ClientError(f"the server's URL is {self.url!r}; expected one like http://127.0.0.1:8000")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ClientError("the API key is empty or holds characters that no key has, such as spaces or line breaks")

    def options(self, verify: ssl.SSLContext | bool) -> dict[str, Any]:
        """Arguments for httpx's clients. The number of connections is not limited: the caller's concurrency sets it."""
        headers = {"User-Agent": _USER_AGENT}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_IDLE_SECONDS)
        return {"base_url": self.url, "headers": headers, "verify": verify, "limits": limits}

"""Headers for browsers: what a page from this server may do, and which other origins may call the server."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import console_page, docs_page, replica_name, store_notice
from serving.config import Settings

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)
"""What the page of Swagger UI loads. Its script is inline; the page shows nothing that clients write."""
_HSTS = "max-age=31536000"

_METHODS = ("GET", "POST", "PUT", "DELETE")
_TAKEN = (
    "Authorization",
    "Content-Type",
    "X-Api-Key",
    "X-Ken-Delta",
    "X-Ken-Key",
    "X-Ken-Task",
    "X-Request-Id",
    "X-Request-Timeout-Ms",
)
_SHOWN = (
    "Retry-After",
    "Server-Timing",
    "X-Ken-Delta",
    "X-Ken-Merge",
    replica_name.HEADER,
    store_notice.HEADER,
    "X-Request-Id",
)


def install(app: FastAPI, settings: Settings, replica: str) -> None:
    """Put security headers, CORS and the replica's name around everything else, answers to unexpected exceptions too.

    Starlette makes those answers outside of what `add_middleware` adds, so the stack is wrapped where it is built.
    """
    build = app.build_middleware_stack

    def wrapped() -> ASGIApp:
        stack = build()
        if settings.cors_origins:
            stack = CORSMiddleware(
                stack,
                allow_origins=settings.cors_origins,
                allow_methods=_METHODS,
                allow_headers=_TAKEN,
                expose_headers=_SHOWN,
                allow_credentials=False,
            )
        return SecurityHeaders(replica_name.ReplicaName(stack, replica), settings.tls)

    app.build_middleware_stack = wrapped  # type: ignore[method-assign]


class SecurityHeaders:
    """Adds security headers to every answer.

    Args:
        tls: whether clients connect over TLS; browsers are then told to use nothing else.
    """

    def __init__(self, app: ASGIApp, tls: bool) -> None:
        self._app = app
        self._headers = _ALWAYS | ({"Strict-Transport-Security": _HSTS} if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = self._headers | _headers_of(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in headers.items():
                    sent[name] = value
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _headers_of(path: str) -> dict[str, str]:
    if console_page.owns(path):
        return {"Content-Security-Policy": console_page.POLICY, "Cache-Control": console_page.CACHING}
    return {"Content-Security-Policy": _DOCS_POLICY if path == docs_page.PATH else _POLICY}

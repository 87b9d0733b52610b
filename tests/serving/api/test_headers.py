"""Headers on every answer, whoever made it, and pages of other origins."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from serving.api import docs_page, failures, headers
from serving.api.middleware import BodyLimit
from serving.api.problems import problem
from serving.config import load_settings

ORIGIN = "https://app.example"
Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask() -> Callable[..., httpx.Response]:
    """One request to an application with our error handlers and limit, under the given settings."""

    def run(method: str, path: str, settings: dict[str, Any] | None = None, **request: Any) -> httpx.Response:
        app = FastAPI(docs_url=None, redoc_url=None)
        docs_page.install(app)
        failures.install(app, lambda path: problem)
        app.add_middleware(BodyLimit, limit_of=lambda path: 10, seconds=10.0, shape_of=lambda path: problem)
        headers.install(app, load_settings(base="b", **settings or {}), "node-0")

        @app.post("/ok")
        async def ok() -> str:
            return "ok"

        @app.get("/fails")
        async def fails() -> None:
            raise RuntimeError("on purpose")

        async def conversation() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://ken") as client:
                return await client.request(method, path, **request)

        return asyncio.run(conversation())

    return run


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/ok", b"", 200),
        ("GET", "/nowhere", b"", 404),
        ("GET", "/ok", b"", 405),
        ("POST", "/ok", b"x" * 11, 413),
        ("GET", "/fails", b"", 500),
    ],
)
def test_every_answer_has_them_once(method: str, path: str, content: bytes, status: int, ask: Ask) -> None:
    response = ask(method, path, content=content)
    assert response.status_code == status
    for name, value in {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "cache-control": "no-store",
    }.items():
        assert response.headers.get_list(name) == [value]
    assert response.headers.get_list("x-ken-replica") == ["node-0"]
    assert "strict-transport-security" not in response.headers


def test_over_tls_browsers_are_told_to_stay_with_it(ask: Ask) -> None:
    response = ask("GET", "/nowhere", {"tls_cert": "cert.pem", "tls_key": "key.pem"})
    assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_the_documentation_page_may_load_all_it_loads_and_stays_out_of_frames(ask: Ask) -> None:
    response = ask("GET", "/docs")
    policy = {
        name: rest for name, *rest in (part.split() for part in response.headers["content-security-policy"].split(";"))
    }
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    tags = {
        "script-src": r'<script[^>]* src="([^"]+)"',
        "style-src": r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"',
        "img-src": r'<link[^>]*rel="shortcut icon"[^>]*href="([^"]+)"',
    }
    for kind, tag in tags.items():
        loaded = re.findall(tag, response.text)
        assert loaded
        assert "'self'" in policy[kind]
        for path in loaded:
            assert urlsplit(path).netloc == "", "a page that works without the internet"
            assert ask("GET", path).status_code == 200
    assert re.search(r"<script>", response.text)
    assert "'unsafe-inline'" in policy["script-src"]
    assert policy["connect-src"] == ["'self'"]


PREFLIGHT = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}


def granted(response: httpx.Response) -> list[str]:
    return [name for name in response.headers if name.startswith("access-control-allow")]


def test_pages_of_other_origins_get_nothing_by_default(ask: Ask) -> None:
    assert granted(ask("POST", "/ok", headers={"Origin": ORIGIN})) == []
    assert granted(ask("OPTIONS", "/ok", headers=PREFLIGHT)) == []


def test_a_named_origin_may_call_and_read_and_no_other(ask: Ask) -> None:
    settings = {"cors_origins": (ORIGIN,)}
    for path, method, status in (("/ok", "POST", 200), ("/fails", "GET", 500), ("/nowhere", "GET", 404)):
        response = ask(method, path, settings, headers={"Origin": ORIGIN})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == ORIGIN
        assert "X-Request-Id" in response.headers["access-control-expose-headers"]
        assert response.headers["x-content-type-options"] == "nosniff"
    asked = ask("OPTIONS", "/ok", settings, headers=PREFLIGHT)
    assert asked.status_code == 200
    assert "X-Api-Key" in asked.headers["access-control-allow-headers"]
    for other in ("https://evil.example", "http://app.example", f"{ORIGIN}:8443", f"{ORIGIN}.evil.example"):
        response = ask("POST", "/ok", settings, headers={"Origin": other})
        assert "access-control-allow-origin" not in response.headers
        assert ask("OPTIONS", "/ok", settings, headers={**PREFLIGHT, "Origin": other}).status_code == 400


@pytest.mark.parametrize("origins", [(ORIGIN,), ("*",)])
def test_credentials_are_never_asked_of_browsers(origins: tuple[str, ...], ask: Ask) -> None:
    for response in (
        ask("POST", "/ok", {"cors_origins": origins}, headers={"Origin": ORIGIN, "Cookie": "a=b"}),
        ask("OPTIONS", "/ok", {"cors_origins": origins}, headers=PREFLIGHT),
    ):
        assert response.headers["access-control-allow-origin"] in origins
        assert "access-control-allow-credentials" not in response.headers

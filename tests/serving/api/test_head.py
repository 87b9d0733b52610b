"""HEAD is answered wherever GET is, with what GET has but the body."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from over_http import Served

VARYING = {"date", "x-request-id", "content-length"}
"""``/metrics`` and times of answers differ from one call to the next."""

ENDLESS = "/v1/events"


@pytest.fixture
def places(peers: Served) -> list[str]:
    """A URL of every route that has GET with an end, and of the pages beside them."""
    digest = peers.service.table.resolve("spam")
    named = {"task": "spam", "model": "spam", "version": "canary", "digest": digest, "key": "0" * 12}
    paths = [
        path
        for path, methods in peers.get("/openapi.json").json()["paths"].items()
        if "get" in methods and path != ENDLESS
    ]
    assert len(paths) > 20
    filled = [re.sub(r"{(\w+)}", lambda found: named[found[1]], path) for path in paths]
    return [*filled, "/openapi.json", "/", "/docs", "/v1/tasks/unknown", "/v1/tasks/no%20name", "/nowhere"]


def test_every_get_has_a_head(peers: Served, places: list[str]) -> None:
    for path in places:
        got, head = (httpx.request(method, f"{peers.url}{path}", timeout=30) for method in ("GET", "HEAD"))
        assert head.status_code == got.status_code, path
        assert head.content == b"", path
        headers = [{k: v for k, v in answer.headers.items() if k not in VARYING} for answer in (got, head)]
        assert headers[0] == headers[1], path
        if not path.startswith("/metrics"):
            assert head.headers["content-length"] == str(len(got.content)), path


def test_a_stream_has_a_head_that_ends_and_the_connection_goes_on(peers: Served) -> None:
    with httpx.Client(base_url=peers.url, timeout=20) as client:
        head = client.head(ENDLESS)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/tasks/spam/predict", "/v1/embeddings", "/models/spam", "/v2/models/spam/infer", "/v1/base/verify"]
)
def test_where_there_is_no_get_there_is_no_head(path: str, peers: Served) -> None:
    refused = httpx.head(f"{peers.url}{path}")
    assert (refused.status_code, refused.headers["allow"], refused.content) == (405, "POST", b"")


def test_whoever_uses_another_method_is_told_of_both(peers: Served) -> None:
    refused = httpx.put(f"{peers.url}/v1/tasks/spam")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, DELETE")
    assert httpx.post(f"{peers.url}/healthz").headers["allow"] == "GET, HEAD"


def test_nothing_follows_the_head_on_a_connection_that_stays_open(peers: Served) -> None:
    """A body that was sent all the same would be read as the next answer."""
    place = urlsplit(peers.url)
    with socket.create_connection((place.hostname, place.port), timeout=20) as connection:
        for path in ("/v1/models", "/nowhere"):
            connection.sendall(f"HEAD {path} HTTP/1.1\r\nHost: ken\r\n\r\n".encode())
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: ken\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    heads, _, last = received.rpartition(b"\r\n\r\n")
    assert last == b'{"status":"ok"}'
    assert re.findall(rb"HTTP/1\.1 (\d+)", heads) == [b"200", b"404", b"200"]
    assert b"{" not in heads


def test_a_key_is_needed_for_the_one_as_for_the_other(make_service: Any, talk: Any) -> None:
    service = make_service(auth="on", admin_token="of-the-admin")

    async def conversation(client: httpx.AsyncClient) -> None:
        for path in ("/v1/tasks", "/v1/models", "/info", "/v1/base", "/v1/keys"):
            refused = await client.head(path)
            assert (refused.status_code, refused.content) == (401, b"")
            assert refused.headers["www-authenticate"]
            allowed = await client.head(path, headers={"X-Api-Key": "of-the-admin"})
            assert (allowed.status_code, allowed.content) == (200, b"")

    talk(service, conversation)

"""What each call sends, and how its answer is read: no network."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import httpx
import orjson
import pytest
from listening import Say, Scripted

from ken_core import KenError
from serving.client import (
    ApiError,
    AsyncClient,
    Client,
    ClientError,
    Merge,
    NewKey,
    ReplyError,
    TaskAnswer,
    TaskFailure,
    calls,
)
from serving.client.calls import Call
from serving.client.publishing import CHUNK_BYTES, publish
from serving.store import CHUNK_BYTES as STORE_CHUNK_BYTES

DIGEST = "ab" * 32
SENT: list[tuple[Call[Any], str, Any]] = [
    (calls.predict("spam@canary", "rain"), "POST /v1/tasks/spam@canary/predict", {"inputs": "rain"}),
    (
        calls.predict("spam", ["rain", {"text": "a", "text_pair": "b"}], parameters={"top_k": 1}, kind="embeddings"),
        "POST /v1/tasks/spam/predict",
        {"inputs": ["rain", {"text": "a", "text_pair": "b"}], "parameters": {"top_k": 1}, "kind": "embeddings"},
    ),
    (
        calls.predict(Merge({"spam": 0.5, "spam@canary": 0.5}, "spam@canary", "ties", density=0.2), "rain"),
        "POST /v1/tasks/spam@canary/predict",
        {"inputs": "rain", "model": {"merge": {"spam": 0.5, "spam@canary": 0.5}, "method": "ties", "density": 0.2}},
    ),
    (calls.predict_many("*", "rain"), "POST /v1/predict", {"tasks": "*", "inputs": "rain"}),
    (
        calls.predict_many(["spam@canary", "tox*"], ["rain"], parameters={"top_k": 1}),
        "POST /v1/predict",
        {"tasks": ["spam@canary", "tox*"], "inputs": ["rain"], "parameters": {"top_k": 1}},
    ),
    (calls.generate("poems@canary", "rain"), "POST /v1/tasks/poems@canary/generate", {"prompt": "rain"}),
    (
        calls.generate("poems", [5, 6], parameters={"max_tokens": 3}),
        "POST /v1/tasks/poems/generate",
        {"prompt": [5, 6], "parameters": {"max_tokens": 3}},
    ),
    (
        calls.generate("poems", [{"role": "user", "content": "rain"}]),
        "POST /v1/tasks/poems/generate",
        {"prompt": {"messages": [{"role": "user", "content": "rain"}]}},
    ),
    (calls.stream("poems", "rain"), "POST /v1/tasks/poems/generate", {"prompt": "rain", "stream": True}),
    (
        calls.stream(Merge({"poems": 0.5, "news": 0.5}, "news"), "rain"),
        "POST /v1/tasks/news/generate",
        {"prompt": "rain", "model": {"merge": {"poems": 0.5, "news": 0.5}, "method": "linear"}, "stream": True},
    ),
    (calls.tasks(), "GET /v1/tasks", None),
    (calls.task("spam"), "GET /v1/tasks/spam", None),
    (calls.history("spam"), "GET /v1/tasks/spam/history", None),
    (calls.promote("spam", "canary"), "POST /v1/tasks/spam/promote", {"digest": "canary", "alias": "live"}),
    (
        calls.promote("spam", DIGEST, "canary", wait=2),
        "POST /v1/tasks/spam/promote",
        {"digest": DIGEST, "alias": "canary", "wait": 2},
    ),
    (calls.rollback("spam", wait=2), "POST /v1/tasks/spam/rollback", {"alias": "live", "wait": 2}),
    (calls.delete_version("spam", DIGEST), f"DELETE /v1/tasks/spam/versions/{DIGEST}", None),
    (
        calls.delete_version("spam", DIGEST, force=True, wait=2),
        f"DELETE /v1/tasks/spam/versions/{DIGEST}?force=true&wait=2",
        None,
    ),
    (calls.delete_task("spam", wait=0.5), "DELETE /v1/tasks/spam?wait=0.5", None),
    (calls.route("spam"), "GET /v1/tasks/spam/route", None),
    (calls.set_route("spam", {"live": 9, "new": 1}), "PUT /v1/tasks/spam/route", {"weights": {"live": 9, "new": 1}}),
    (
        calls.set_route("spam", shadow="new"),
        "PUT /v1/tasks/spam/route",
        {"weights": {"live": 1}, "shadow": "new"},
    ),
    (calls.clear_route("spam", wait=2), "DELETE /v1/tasks/spam/route?wait=2", None),
    (calls.rollback_route("spam"), "POST /v1/tasks/spam/route/rollback", None),
    (calls.upload(DIGEST), f"GET /v1/uploads/{DIGEST}", None),
    (calls.publish_digest("spam", DIGEST), "POST /v1/tasks/spam/versions", {"digest": DIGEST, "alias": "live"}),
    (calls.base(), "GET /v1/base", None),
    (calls.verify(), "POST /v1/base/verify", None),
    (calls.replicas(), "GET /v1/replicas", None),
    (calls.adopt_store(wait=2), "POST /v1/store/adopt?wait=2", None),
    (calls.collect_garbage(), "POST /v1/store/gc", None),
    (calls.keys(), "GET /v1/keys", None),
    (
        calls.create_key("ci", ["publish"], ["team-*"], expires_in=60),
        "POST /v1/keys",
        {"name": "ci", "scopes": ["publish"], "tasks": ["team-*"], "expires_in": 60},
    ),
    (calls.revoke_key("0123456789ab"), "DELETE /v1/keys/0123456789ab", None),
]


@pytest.mark.parametrize(("call", "line", "body"), SENT, ids=[line for _, line, _ in SENT])
def test_a_call_is_what_its_route_takes(call: Call[Any], line: str, body: Any) -> None:
    query = f"?{httpx.QueryParams(call.query)}" if call.query else ""
    assert f"{call.method} {call.path}{query}" == line
    assert (None if call.content is None else orjson.loads(call.content)) == body


def test_a_prediction_may_be_pinned_and_sticky() -> None:
    assert calls.predict("spam", "rain", digest=DIGEST, key="user 7").headers == {
        "X-Ken-Delta": DIGEST,
        "X-Ken-Key": "user 7",
    }
    assert calls.predict("spam", "rain").headers == {}


def test_a_name_never_leads_to_another_route() -> None:
    assert calls.task("a/b?c#d e").path == "/v1/tasks/a%2Fb%3Fc%23d%20e"
    for odd in ("", ".", ".."):
        with pytest.raises(ClientError, match="no name"):
            calls.task(odd)


def test_a_delta_is_sent_in_chunks_of_the_size_the_store_keeps() -> None:
    assert CHUNK_BYTES == STORE_CHUNK_BYTES


def answered(status: int, content: bytes, **headers: str) -> httpx.Response:
    request = httpx.Request("GET", "http://ken/v1/tasks")
    return httpx.Response(status, content=content, headers=headers, request=request)


def test_a_prediction_carries_its_timing_in_seconds_and_its_request() -> None:
    content = orjson.dumps({"task": "spam", "digest": DIGEST, "kind": "k", "outputs": [[]], "truncated": [0], "new": 1})
    timing = {"Server-Timing": "load;dur=0.000, queue;dur=1.5, swap;dur=0.25, model;dur=12"}
    found = calls.predict("spam", "rain").read(answered(200, content, **timing, **{"X-Request-Id": "r1"}))
    assert found.timing == {"load": 0.0, "queue": 0.0015, "swap": 0.00025, "model": 0.012}
    assert (found.request_id, found.truncated) == ("r1", (0,))


def test_answers_and_failures_of_many_tasks_are_told_apart() -> None:
    answer = {"task": "spam", "digest": DIGEST, "kind": "k", "outputs": [[]], "truncated": []}
    error = {"type": "about:blank", "title": "Busy", "status": 429, "detail": "wait", "retry_after": 2, "new": 1}
    content = orjson.dumps({"results": [{"task": "slow", "error": error}, answer]})
    found = calls.predict_many("*", "rain").read(answered(200, content, **{"X-Request-Id": "r1"}))
    assert [type(result) for result in found.results] == [TaskFailure, TaskAnswer]
    assert (found.failures["slow"].status, found.failures["slow"].retry_after) == (429, 2.0)
    assert (found.answers["spam"].digest, found.timing, found.request_id) == (DIGEST, {}, "r1")


def test_many_tasks_may_be_asked_for_somebody() -> None:
    assert calls.predict_many("*", "rain", key="user 7", timeout=2.0).headers == {"X-Ken-Key": "user 7"}
    assert calls.predict_many("*", "rain", timeout=2.0).seconds == 2.0


@pytest.mark.parametrize("content", [b"<html>", b"{}", b"null", b'[{"name": "spam"}]'])
def test_an_answer_that_no_server_gives_is_told_from_one_it_does(content: bytes) -> None:
    with pytest.raises(ReplyError, match="which is no answer of a ken-serve"):
        calls.tasks().read(answered(200, content))


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (answered(404, b'{"title": "Unknown task", "detail": "there is no task x"}'), ["there is no task x", "404"]),
        (answered(502, b"<h1>\n bad  gateway</h1>"), ["http://ken/v1/tasks", "502", "Bad Gateway", "bad gateway"]),
        (answered(500, b"[]"), ["gave no reason"]),
        (answered(308, b"", location="https://ken/v1/tasks"), ["redirects to https://ken/v1/tasks"]),
    ],
)
def test_a_refusal_says_what_the_server_said(response: httpx.Response, words: list[str]) -> None:
    with pytest.raises(ApiError) as refused:
        calls.tasks().read(response)
    assert isinstance(refused.value, KenError)
    assert all(word in str(refused.value) for word in words), str(refused.value)


# Uploads


def test_only_chunks_that_the_server_lacks_are_sent() -> None:
    data = bytes(2 * CHUNK_BYTES) + b"end"
    upload = {"digest": DIGEST, "received": [0], "bytes": CHUNK_BYTES, "complete": False}
    changed = Say(200, b'{"task": "spam", "revision": 7}')
    seen: list[tuple[int, int]] = []
    with Scripted(Say(200, orjson.dumps(upload)), Say(), Say(), changed) as server, Client(server.url) as client:
        client.publish("spam", data, progress=lambda done, size: seen.append((done, size)))
    digest = server.lines[0].removeprefix("GET /v1/uploads/")
    assert server.lines[1:] == [
        f"PUT /v1/uploads/{digest}/1",
        f"PUT /v1/uploads/{digest}/2",
        "POST /v1/tasks/spam/versions",
    ]
    assert server.heard[2].body == b"end"
    assert seen == [(CHUNK_BYTES, len(data)), (2 * CHUNK_BYTES, len(data)), (len(data), len(data))]


def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ClientError, match=r"/nonexistent\.ken cannot be read"):
        next(publish("spam", "/nonexistent.ken"))


# Both clients


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(client: type) -> dict[str, list[str]]:
        public = inspect.getmembers(client, inspect.isfunction)
        return {name: list(inspect.signature(f).parameters) for name, f in public if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    assert methods(Client)["promote"] == ["self", "task", "digest", "alias", "allow_other_labels", "wait"]
    assert "the version that answers" in str(Client.predict.__doc__)


def test_the_client_is_imported_without_the_server() -> None:
    heavy = "torch", "ray", "transformers", "fastapi", "redis", "numba", "numpy"
    program = f"import serving.client, sys; print([m for m in {heavy} if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"


# The server's address


def test_a_server_may_lie_under_a_path() -> None:
    with Scripted(Say()) as server:
        for url in (f"{server.url}/models/ken", f"{server.url}/models/ken/"):
            with Client(url) as client:
                assert client.tasks() == []
    assert server.lines == ["GET /models/ken/v1/tasks"] * 2


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ken", "ftp://ken", "http://", "http://ken?a=1", "http://ken:port", ""]
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="URL"):
        Client(url)


def test_a_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    key = "ken_0123456789ab_secret"
    caplog.set_level("DEBUG")
    with Scripted(Say(401, b"{}")) as server, Client(server.url, key) as client:
        with pytest.raises(ApiError) as refused:
            client.tasks()
        shown = f"{client!r} {refused.value} {vars(client)} {caplog.text}"
    assert server.heard[0].headers["Authorization"] == f"Bearer {key}"
    assert server.url in shown
    assert key not in shown
    assert "secret" not in repr(
        NewKey(id="0", name="ci", scopes=("admin",), tasks=("*",), created=0, token=key, revision=1)
    )


@pytest.mark.parametrize("key", ["", "two words", "line\n", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    with pytest.raises(ClientError) as refused:
        AsyncClient("http://ken", key)
    assert not key or key not in str(refused.value)


def test_a_password_in_the_url_is_refused_unseen() -> None:
    with pytest.raises(ClientError, match="api_key") as refused:
        Client("http://me:hunter2@ken")
    assert "hunter2" not in str(refused.value)

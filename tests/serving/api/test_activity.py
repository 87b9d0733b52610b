"""`GET /v1/activity`: what the server did lately, and who sees how much of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from over_http import Served
from problems import is_problem

from serving.monitoring import scraping
from serving.replica import observing

ADMIN = {"Authorization": "Bearer of-the-admin"}


@pytest.fixture
def ask(pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What the first replica says, always of this moment."""
    monkeypatch.setattr(observing, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(observing, "_REST", 0)
    monkeypatch.setattr(scraping, "_SECONDS", 20.0)  # of a busy machine

    def run(headers: dict[str, str] = ADMIN) -> Any:
        answer = httpx.get(f"{pair[0].url}/v1/activity", headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return run


def predict(replica: Served, task: str, inputs: Any = "how nice") -> int:
    path = f"/v1/tasks/{task}/predict"
    return replica.post(path, json={"inputs": inputs}, headers=ADMIN).status_code


def test_requests_to_all_replicas_count(
    pair: tuple[Served, Served], ask: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    first, second = pair
    names = {replica.service.replica for replica in pair}
    eventually(lambda: {one["replica"] for one in ask()["replicas"]} == names)
    assert [predict(replica, "spam") for replica in (first, second, second)] == [200, 200, 200]
    assert predict(second, "spam", [7]) == 422
    found = ask()
    assert found["unread"] == {}
    assert found["seconds"] > 0
    spam, mood = (next(one for one in found["tasks"] if one["task"] == task) for task in ("spam", "mood"))
    assert found["tasks"][0] == spam
    assert spam["requests_per_second"] == pytest.approx(4 * spam["refused_per_second"], rel=0.2)
    assert (spam["failed_share"], mood["failed_share"], mood["requests_per_second"]) == (0.0, None, 0.0)
    assert 0 < spam["p50_seconds"] <= spam["p95_seconds"] <= spam["p99_seconds"]
    assert spam["held"][first.service.replica] == "packed"
    assert mood["held"][first.service.replica] != "packed"
    (version,) = (one for one in found["versions"] if one["task"] == "spam")
    assert version["version"] == first.service.table.live["spam"][:12]
    assert version["requests_per_second"] == pytest.approx(spam["requests_per_second"], rel=0.3)
    for one in found["replicas"]:
        assert one["requests_per_second"] > 0
        assert {"base", "packed"} <= one["bytes_by_tier"].keys()
        assert one["trouble"] == []


def test_a_key_of_some_tasks_sees_these_alone(
    pair: tuple[Served, Served], ask: Callable[..., Any], key_of: Callable[..., tuple[str, str]]
) -> None:
    _, token = key_of("predict", tasks=["mood*"])
    assert predict(pair[0], "spam") == 200
    assert predict(pair[0], "nowhere") == 404
    assert {"spam", "mood", "unknown"} <= {one["task"] for one in ask()["tasks"]}
    found = ask({"X-Api-Key": token})
    assert [one["task"] for one in found["tasks"]] == ["mood"]
    assert {one["task"] for one in found["versions"] + found["shadows"]} <= {"mood"}
    assert (found["replicas"], found["unread"]) == (None, {})
    assert is_problem(httpx.get(f"{pair[0].url}/v1/activity"), 401)


def test_a_replica_that_cannot_be_read_is_named_and_the_others_are_shown(
    pair: tuple[Served, Served], ask: Callable[..., Any]
) -> None:
    store = pair[0].service.store
    store.replicas.report("elsewhere", 1, "127.0.0.1:9")
    try:
        found = ask()
    finally:
        store.replicas.retire("elsewhere")
    assert list(found["unread"]) == ["elsewhere"]
    (gone,) = (one for one in found["replicas"] if one["replica"] == "elsewhere")
    assert gone["requests_per_second"] is None
    assert "metrics" in gone["trouble"][0]


class Stranger:
    """A program that listens where a replica once did, and answers as it likes."""

    def __init__(self, told: Callable[[socket.socket], None]) -> None:
        self._told = told
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._answer, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                threading.Thread(target=self._one, args=[connection], daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.recv(10_000)
            self._told(connection)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"


def silently(connection: socket.socket) -> None:
    time.sleep(30)


def in_drops(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"# a comment\n")
        time.sleep(0.05)


def with_an_endless_head(connection: socket.socket) -> None:
    connection.sendall(HEAD[:-2])
    while True:
        connection.sendall(b"X-More: 1\r\n")
        time.sleep(0.05)


def without_end(connection: socket.socket) -> None:
    connection.sendall(HEAD)
    while True:
        connection.sendall(b"# a comment\n" * 1000)


def as_html(connection: socket.socket) -> None:
    connection.sendall(HEAD.replace(b"plain", b"html") + b"<html>")


@pytest.mark.parametrize("told", [silently, in_drops, with_an_endless_head, without_end, as_html])
def test_what_listens_where_a_replica_was_is_given_up(
    told: Callable[[socket.socket], None],
    pair: tuple[Served, Served],
    ask: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scraping, "_SECONDS", 4.0)  # a busy machine reads the healthy replica within it
    monkeypatch.setattr(scraping, "_MOST_BYTES", 1 << 20)
    store, stranger = pair[0].service.store, Stranger(told)
    monkeypatch.setattr(pair[0].service.observer, "_scraper", scraping.Scraper())
    store.replicas.report("elsewhere", 1, stranger.address)
    try:
        found = ask()
    finally:
        store.replicas.retire("elsewhere")
        stranger.close()
    assert list(found["unread"]) == ["elsewhere"]


def test_who_waits_for_a_look_keeps_nobody_else_waiting_and_figures_go_on(
    pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    observer, looking = pair[0].service.observer, threading.Event()
    look, observe, came = observer._look, observer.observe, list[None]()

    def held_up() -> Any:
        assert looking.wait(60)
        return look()

    async def counted() -> Any:
        came.append(None)
        return await observe()

    monkeypatch.setattr(observer, "_look", held_up)
    monkeypatch.setattr(observer, "observe", counted)
    monkeypatch.setattr(observer, "_next", 0.0)
    with ThreadPoolExecutor(40) as clients:
        url = f"{pair[0].url}/v1/activity"
        asked = [clients.submit(httpx.get, url, headers=ADMIN, timeout=60) for _ in range(40)]
        eventually(lambda: len(came) == 40)
        other = httpx.get(f"{pair[0].url}/v1/tasks/spam/history", headers=ADMIN, timeout=10)
        assert not any(one.done() for one in asked)
        looking.set()
        found = {one.result().json()["at"] for one in asked}
    assert other.status_code == 200
    assert len(found) == 1
    assert observer._next - time.monotonic() <= observing._LONGEST_REST


def test_who_asks_again_at_once_is_told_the_same(pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "FRESH_SECONDS", 3600.0)  # "at once" of a busy machine
    monkeypatch.setattr(pair[0].service.observer, "_next", 0.0)
    first, again = (httpx.get(f"{pair[0].url}/v1/activity", headers=ADMIN, timeout=30).json() for _ in range(2))
    assert first["at"] == again["at"]

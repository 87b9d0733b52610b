"""`ken top` on a real server: one interval as JSON and as tables, a server that goes away, what cannot be reached."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.client import Client
from tests.cli.running import ADMIN, Ken, facts
from tests.serving.listening import Say, Scripted


@pytest.fixture(scope="module")
def server(
    ken: Ken, url: str, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The URL of a server with a task that answers."""
    delta = tmp_path_factory.mktemp("deltas") / "mood.ken"
    made = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", delta, "--keep", "0.1")
    assert made.returncode == 0, made.stderr
    with Client(url, ADMIN) as client:
        assert not client.publish("mood", delta, wait=60).pending
    return url


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_API_KEY", ADMIN)


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine answers later than users should wait for."""
    monkeypatch.setattr("serving.monitoring.scraping._SECONDS", 20.0)
    monkeypatch.setattr("serving.monitoring.looking._SECONDS", 60.0)


@pytest.fixture
def asked(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The task is asked all the time. An interval lasts until it was answered, however slow the machine is."""
    done, answered = threading.Event(), threading.Semaphore(0)

    def ask() -> None:
        with Client(server, ADMIN) as client:
            while not done.is_set():
                client.predict("mood", "a good film")
                answered.release()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        while answered.acquire(blocking=False):
            pass
        for _ in range(2):  # the first may have been counted before the interval
            assert answered.acquire(timeout=60)

    monkeypatch.setattr("serving.cli.top.time", SimpleNamespace(sleep=sleep, time=time.time))
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert answered.acquire(timeout=60)  # the task is on the device before the first look
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.usefixtures("asked")
def test_one_interval_is_told_as_json(ken: Ken, server: str) -> None:
    found = facts(ken("top", "--url", server, "--interval", 0.5, "--json"))
    tasks = {task["task"]: task for task in found["tasks"]}  # type: ignore[attr-defined]
    assert tasks["mood"]["answers"]["requests_per_second"] > 0
    assert 0 < tasks["mood"]["answers"]["p50_seconds"] <= tasks["mood"]["answers"]["p95_seconds"]
    assert tasks["mood"]["held"] in ("packed", "materialised")
    (replica,) = found["replicas"]  # type: ignore[misc]
    assert replica["answers"]["requests_per_second"] == pytest.approx(found["answers"]["requests_per_second"])  # type: ignore[index]
    assert replica["bytes_by_tier"]["base"] > 0
    assert replica["up_seconds"] > 0
    assert replica["trouble"] == []


@pytest.mark.usefixtures("asked")
def test_one_interval_is_shown_as_tables(ken: Ken, server: str) -> None:
    shown = ken("top", "--url", server, "--interval", 0.3, "--once").stdout
    assert f"{server}: " in shown
    for title in ("tasks", "replicas", "memory", "mood", "requests/s", "ready"):
        assert title in shown


def test_a_server_that_was_never_there_is_an_error(ken: Ken) -> None:
    ended = ken("top", "--url", "http://127.0.0.1:9", "--once")
    assert ended.returncode == 1
    assert "http://127.0.0.1:9" in ended.stderr


def test_metrics_that_cannot_be_reached_are_named_and_the_rest_is_shown(ken: Ken) -> None:
    replica = {"name": "far-0", "revision": 1, "metrics": "127.0.0.1:9", "ready": True, "in_flight": 2}
    first = [Say(body=json.dumps([replica]).encode()), Say(body=b"[]"), Say(404)]
    with Scripted(*first, *first) as server:
        found = facts(ken("top", "--url", server.url, "--interval", 0.1, "--json"))
        sent_to_metrics = server.heard[2]
    assert sent_to_metrics.line == "GET /metrics"
    assert ADMIN not in str(sent_to_metrics.headers)
    assert (found["answers"], found["in_flight"]) == (None, 2)
    (shown,) = found["replicas"]  # type: ignore[misc]
    assert shown["trouble"][0].startswith("metrics: http://127.0.0.1:9/metrics cannot be reached from here")


def test_what_a_server_tells_is_neither_markup_nor_does_it_rewrite_the_screen(ken: Ken) -> None:
    replica = {"name": "[/]far\x1b[2J", "revision": 1, "metrics": "\x1b[2Jfar:1", "ready": True, "in_flight": 0}
    first = [Say(body=json.dumps([replica]).encode()), Say(body=b"[]"), Say(body=b'ken_cache_bytes{replica="x"} 1\n')]
    with Scripted(*first, *first) as server:
        ended = ken("top", "--url", server.url, "--interval", 0.1, "--once")
    assert ended.returncode == 0, ended.stderr
    assert "[/]far" in ended.stdout
    assert "far:1" in ended.stdout
    assert "\x1b[2J" not in ended.stdout


def test_a_server_that_is_lost_is_told_and_asked_again_until_ctrl_c(ken: Ken, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [Say(body=b"[]"), Say(body=b"[]"), Say(503), Say(body=b"[]"), Say(body=b"[]")]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise KeyboardInterrupt

    with Scripted(*replies) as server:
        monkeypatch.setattr("serving.cli.top.time", SimpleNamespace(sleep=sleep, time=time.time))
        ended = ken("top", "--url", server.url, "--interval", 1.5)
    assert ended.returncode == 0
    assert ended.stderr.count("trying again") == 1
    assert "503" in ended.stderr
    assert slept == [1.5, 1.5, 1.5]

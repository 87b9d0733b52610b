"""`GET /v1/activity`: what the server did lately, and who sees how much of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from over_http import Served
from problems import is_problem

from serving.replica import observing

ADMIN = {"Authorization": "Bearer of-the-admin"}


@pytest.fixture
def ask(pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What the first replica says, always of this moment."""
    monkeypatch.setattr(observing, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(observing, "_REST", 0)

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


def test_who_asks_again_at_once_is_told_the_same(pair: tuple[Served, Served]) -> None:
    first, again = (httpx.get(f"{pair[0].url}/v1/activity", headers=ADMIN, timeout=30).json() for _ in range(2))
    assert first["at"] == again["at"]

"""`GET /v1/events`: what happens in the server, as it happens, and who sees how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson
import pytest
from over_http import Served
from problems import is_problem

from serving.api import events, following
from serving.errors import StoreError
from serving.replica import happenings
from serving.replica.happenings import Happening, Happenings
from serving.security.keys import ANYONE, Principal
from serving.service import Service

ADMIN = {"Authorization": "Bearer of-the-admin"}
Told = tuple[str, dict[str, Any], str | None]


class Stream:
    """The events of a stream that is open."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.iter_lines()
        self._comments = 0
        self.read_comments(1)

    def __iter__(self) -> Iterator[Told]:
        return self

    def __next__(self) -> Told:
        while True:
            fields = self._block()
            if "data" in fields:
                return fields["event"], orjson.loads(fields["data"]), fields.get("id")

    def first(self, wanted: Callable[[str, dict[str, Any]], bool]) -> Told:
        return next(told for told in self if wanted(told[0], told[1]))

    def read_comments(self, number: int) -> None:
        while self._comments < number:
            self._block()

    def read_to_the_end(self) -> None:
        for _ in self._lines:
            pass

    def _block(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        while line := next(self._lines):
            name, _, value = line.partition(": ")
            self._comments += not name
            fields[name] = value
        return fields


@contextmanager
def stream(served: Served, **headers: str) -> Iterator[Stream]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with httpx.stream("GET", f"{served.url}/v1/events", headers={**ADMIN, **named}, timeout=20) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        told = Stream(answer)  # whose lines close the connection when they are no longer referred to
        yield told


def promote(served: Served, task: str = "spam") -> int:
    digest = served.service.table.live[task]
    changed = served.post(f"/v1/tasks/{task}/promote", json={"digest": digest, "alias": "canary"}, headers=ADMIN)
    assert changed.status_code == 200, changed.text
    return int(changed.json()["revision"])


def of(revision: int) -> Callable[[str, dict[str, Any]], bool]:
    return lambda kind, told: kind == "change" and told["revision"] == revision


def swap_of(served: Served) -> Callable[[str, dict[str, Any]], bool]:
    return lambda kind, told: kind == "swap" and told["replica"] == served.service.replica


def is_change(kind: str, told: dict[str, Any]) -> bool:
    return kind == "change"


def test_a_change_made_at_another_replica_is_told_with_who_made_it(pair: tuple[Served, Served]) -> None:
    with stream(pair[0]) as told:
        revision = promote(pair[1])
        _, change, id = told.first(of(revision))
    digest = pair[0].service.table.live["spam"]
    assert change.pop("when") > 0
    assert change == {
        "task": "spam", "revision": revision, "action": "promote", "alias": "canary", "digest": digest,
        "who": "admin-token",
    }  # fmt: skip
    assert id is not None


def test_whoever_comes_back_is_told_what_it_missed_once(pair: tuple[Served, Served]) -> None:
    with stream(pair[0]) as told:
        _, _, last = told.first(of(promote(pair[0])))
    missed = [promote(pair[0]), promote(pair[0], "mood")]
    with stream(pair[1], Last_Event_ID=str(last)) as told:
        revisions = [told.first(is_change)[1]["revision"] for _ in missed]
        assert revisions == missed
        after = promote(pair[0])
        assert told.first(is_change)[1]["revision"] == after


@pytest.mark.parametrize("last", ["", "x", "1", "1-", "99999999999999999999-0", "99999999999999999999999-0"])
def test_what_is_no_id_is_as_none(last: str, pair: tuple[Served, Served]) -> None:
    with stream(pair[0], Last_Event_ID=last) as told:
        assert told.first(of(promote(pair[0])))


def test_a_key_sees_the_changes_of_its_own_tasks_alone(
    pair: tuple[Served, Served], key_of: Callable[..., tuple[str, str]]
) -> None:
    _, token = key_of("predict", tasks=["mood*"])
    with stream(pair[0], Authorization=f"Bearer {token}") as told:
        promote(pair[0], "spam")
        key_of("predict")
        log = pair[0].service.metrics.swap_log
        log.note(None, pair[0].service.table.live["mood"], 0.01)
        revision = promote(pair[0], "mood")
        seen = [next(told)]
        while not of(revision)(*seen[-1][:2]):
            seen.append(next(told))
    assert {(kind, one["task"]) for kind, one, _ in seen} == {("change", "mood")}


def test_swaps_of_another_replica_are_told_with_the_names_of_tasks(pair: tuple[Served, Served]) -> None:
    spam = pair[1].service.table.live["spam"]
    with stream(pair[0]) as told:
        for left, entered in ((None, spam), (spam, "f" * 64)):
            pair[1].service.metrics.swap_log.note(left, entered, 0.0125)
        swaps = [told.first(lambda kind, one: kind == "swap" and one.get("seconds") == 0.0125)[1] for _ in range(2)]
    assert [(one["from"], one["to"], one["seconds"]) for one in swaps] == [
        (None, "spam", 0.0125),
        ("spam", "@other", 0.0125),
    ]
    assert {one["replica"] for one in swaps} == {pair[1].service.replica}


def test_of_many_swaps_the_first_are_told_and_the_others_counted(pair: tuple[Served, Served]) -> None:
    with stream(pair[0]) as told:
        for _ in range(500):
            pair[0].service.metrics.swap_log.note(None, "f" * 64, 0.001)
        seen = skipped = 0
        while seen + skipped < 500:
            _, swap, _ = told.first(swap_of(pair[0]))
            skipped, seen = skipped + swap.get("skipped", 0), seen + (swap.get("to") == "@other")
    assert seen + skipped == 500
    assert 10 <= seen <= 100


def test_a_replica_that_joins_and_one_that_goes_are_told(
    pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(happenings, "_REPLICAS_SECONDS", 0.0)
    replicas = pair[0].service.store.replicas
    with stream(pair[0]) as told:
        replicas.report("newcomer", 1)
        assert told.first(lambda kind, _: kind == "replica")[1] == {"replica": "newcomer", "state": "joined"}
        replicas.retire("newcomer")
        assert told.first(lambda kind, _: kind == "replica")[1] == {"replica": "newcomer", "state": "gone"}


def test_it_ends_when_the_replica_drains(pair: tuple[Served, Served], eventually: Callable[..., None]) -> None:
    with stream(pair[0]) as told, pair[0].draining():
        told.read_to_the_end()
    eventually(lambda: pair[0].service.admission.requests == 0)
    with pair[0].draining():
        assert is_problem(httpx.get(f"{pair[0].url}/v1/events", headers=ADMIN), 503)


def test_it_ends_with_the_key(
    pair: tuple[Served, Served], key_of: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.1)
    key, token = key_of("predict")
    store = pair[0].service.store
    with stream(pair[0], Authorization=f"Bearer {token}") as told:
        assert not store.replicas.wait(store.keys.drop(key), 10).pending
        told.read_to_the_end()


def test_a_comment_keeps_a_quiet_stream_open(pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PAUSE_SECONDS", 0.05)
    with stream(pair[0]) as told:
        told.read_comments(3)


def test_only_so_many_follow_one_replica(
    pair: tuple[Served, Served], eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: pair[0].service.admission.requests == 0)
    monkeypatch.setattr(following, "MOST_FOLLOWERS", 1)
    with stream(pair[0]):
        refused = httpx.get(f"{pair[0].url}/v1/events", headers=ADMIN)
        assert is_problem(refused, 429)
        assert int(refused.headers["retry-after"]) > 0


def test_whoever_leaves_makes_room(
    pair: tuple[Served, Served], eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream(pair[0]):
        pass
    monkeypatch.setattr(following, "MOST_FOLLOWERS", 1)
    eventually(lambda: pair[0].service.admission.requests == 0)
    with stream(pair[0]):
        pass


def test_whoever_reads_too_slowly_is_known_to_have_lost_something() -> None:
    async def follow() -> tuple[bool, bool]:
        follower = following.Follower(ANYONE, asyncio.Queue(2))
        one = Happening("placement", {"epoch": 1})
        follower.take([one, one])
        before = follower.lost
        follower.take([one])
        return before, follower.lost

    assert asyncio.run(follow()) == (False, True)


def test_swaps_that_are_too_many_are_counted_and_end_no_stream() -> None:
    async def follow() -> list[Happening | None]:
        everybody, somebody = following.Follower(ANYONE), following.Follower(Principal("p", ("predict",), ("mood",)))
        swap = Happening("swap", {"replica": "a", "from": None, "to": "spam"})
        for follower in (everybody, somebody):
            follower.take([swap] * 3000)
            follower.take([Happening("change", {"task": "mood"}, "1-0")])
            assert not follower.lost
        assert somebody.waiting.qsize() == 1
        return [await everybody.next(0.01) for _ in range(503)]

    *swaps, change, skipped, nothing = asyncio.run(follow())
    assert len(swaps) == 500
    assert change is not None
    assert change.kind == "change"
    assert skipped is not None
    assert skipped.told == {"replica": "a", "skipped": 2500}
    assert nothing is None


def test_what_was_read_before_the_store_failed_is_told_afterwards(
    pair: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pair[0].service.store
    found = Happenings(store, lambda: None)
    found.begin()
    revision = promote(pair[0])
    with monkeypatch.context() as broken:
        broken.setattr(happenings, "_REPLICAS_SECONDS", 0.0)
        broken.setattr(store.replicas, "reports", lambda: (_ for _ in ()).throw(StoreError("it is down")))
        with pytest.raises(StoreError):
            found.new()
    assert [told.told["revision"] for told in found.new() if told.kind == "change"] == [revision]


def test_no_change_is_left_out_of_many_that_were_missed(pair: tuple[Served, Served]) -> None:
    store, digest = pair[0].service.store, pair[0].service.table.live["spam"]
    with stream(pair[0]) as told:
        _, _, last = told.first(of(promote(pair[0])))
    missed = [store.tasks.promote("spam", digest, "canary") for _ in range(230)]
    with stream(pair[0], Last_Event_ID=str(last)) as told:
        assert [told.first(is_change)[1]["revision"] for _ in missed] == missed


def test_one_key_leaves_room_for_others(
    pair: tuple[Served, Served],
    key_of: Callable[..., tuple[str, str]],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eventually(lambda: pair[0].service.admission.requests == 0)
    monkeypatch.setattr(following, "MOST_OF_A_KEY", 1)
    _, token = key_of("predict")
    with stream(pair[0], Authorization=f"Bearer {token}") as one:
        refused = httpx.get(f"{pair[0].url}/v1/events", headers={"X-Api-Key": token})
        assert is_problem(refused, 429)
        with stream(pair[0]) as other:
            assert one is not other


def test_the_engine_notes_which_tasks_its_weights_change_between(exchanging: Service, talk: Callable[..., Any]) -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        for task in ("spam", "topic"):
            assert (await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"})).status_code == 200

    exchanging._telling_swaps.stop()
    talk(exchanging, ask)
    swaps, skipped = exchanging.metrics.swap_log.fetch()
    live = exchanging.table.live
    assert [(one.left, one.entered) for one in swaps] == [(None, live["spam"]), (live["spam"], live["topic"])]
    assert all(one.seconds > 0 for one in swaps)
    assert skipped == 0


def test_it_needs_a_key(pair: tuple[Served, Served]) -> None:
    assert is_problem(httpx.get(f"{pair[0].url}/v1/events"), 401)

"""Tasks over HTTP: what is shown, what can be changed, and how changes are refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from problems import is_problem

from serving.security.keys import new_key
from serving.service import Service
from serving.store import Store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

Client = httpx.AsyncClient
Talk = Callable[..., Any]
MakeService = Callable[..., Service]
SPAM = "/v1/tasks/spam/predict"


def test_tasks_are_listed_with_aliases_and_versions(get: Callable[..., httpx.Response], deltas: Deltas) -> None:
    listed = get("/v1/tasks").json()
    assert {t["name"]: (t["aliases"], t["versions"], t["route"]) for t in listed} == {
        name: ({"live": digest}, [digest], None)
        for name in ("emotion", "spam", "topic")
        for digest in [getattr(deltas, name).digest]
    }


def test_one_task_is_shown_with_where_its_versions_are(service: Service, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: Client) -> None:
        before = (await client.get("/v1/tasks/spam")).json()
        assert (before["name"], before["aliases"]) == ("spam", {"live": deltas.spam.digest})
        assert (before["tiers"], before["hit_rate"]) == ({deltas.spam.digest: "store"}, None)
        for _ in range(4):
            assert (await client.post(SPAM, json={"inputs": "rain"})).status_code == 200
        after = (await client.get("/v1/tasks/spam")).json()
        assert after["tiers"] == {deltas.spam.digest: "packed"}
        assert {tier: n for tier, n in after["hits"].items() if n} == {"store": 1, "packed": 3}
        assert after["hit_rate"] == 0.75
        assert after["replica"] == service.replica
        assert is_problem(await client.get("/v1/tasks/spamm"), 404, "'spam'")

    talk(service, conversation)


def test_a_task_without_a_live_version_is_shown_too(
    get: Callable[..., httpx.Response], publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("early", deltas.spam, alias="canary")
    assert get("/v1/tasks/early").json()["aliases"] == {"canary": deltas.spam.digest}


def test_history_is_told_newest_first(
    get: Callable[..., httpx.Response], publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2)
    told = get("/v1/tasks/spam/history").json()
    assert [h["digest"] for h in told] == [deltas.spam_2.digest, deltas.spam.digest]
    assert all(h["who"] and h["when"] > 1e9 for h in told)


def test_promote_rollback_and_delete_change_what_is_answered(
    service: Service, talk: Talk, publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2)

    async def conversation(client: Client) -> None:
        async def served() -> str:
            return (await client.post(SPAM, json={"inputs": "rain"})).json()["digest"]

        async def change(method: str, path: str, **request: Any) -> None:
            response = await client.request(method, path, **request)
            assert response.status_code == 200, response.text
            assert (response.json()["task"], response.json()["pending"]) == ("spam", [])

        assert await served() == deltas.spam_2.digest
        await change("POST", "/v1/tasks/spam/promote", json={"digest": deltas.spam.digest, "wait": 20})
        assert await served() == deltas.spam.digest
        await change("POST", "/v1/tasks/spam/rollback", json={"wait": 20})
        assert await served() == deltas.spam_2.digest
        await change("DELETE", f"/v1/tasks/spam/versions/{deltas.spam.digest}?wait=20")
        pinned = await client.post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": deltas.spam.digest})
        assert is_problem(pinned, 404)
        assert is_problem(await client.delete("/v1/tasks/spam"), 409, "live")
        assert await served() == deltas.spam_2.digest
        await change("DELETE", "/v1/tasks/spam?force=true&wait=20")
        assert is_problem(await client.post(SPAM, json={"inputs": "rain"}), 404)
        pinned = await client.post(SPAM, json={"inputs": "rain"}, headers={"X-Ken-Delta": deltas.spam_2.digest})
        assert is_problem(pinned, 404)

    talk(service, conversation)


def test_an_alias_can_be_promoted_by_its_name(
    service: Service, talk: Talk, publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2, alias="canary")

    async def conversation(client: Client) -> None:
        await client.post("/v1/tasks/spam/promote", json={"digest": "canary", "wait": 20})
        assert (await client.post(SPAM, json={"inputs": "rain"})).json()["digest"] == deltas.spam_2.digest

    talk(service, conversation)


def test_versions_are_changed_by_their_first_digits_and_recorded_whole(
    service: Service, talk: Talk, publish: Callable[..., None], deltas: Deltas, caplog: pytest.LogCaptureFixture
) -> None:
    publish("spam", deltas.spam_2, alias="canary")
    first, second = deltas.spam.digest, deltas.spam_2.digest

    async def conversation(client: Client) -> None:
        async def change(method: str, path: str, **request: Any) -> None:
            response = await client.request(method, f"/v1/tasks/spam/{path}", **request)
            assert response.status_code == 200, response.text

        await change("POST", "promote", json={"digest": second[:12]})
        await change("PUT", "route?wait=20", json={"weights": {first[:12]: 1}, "shadow": second[:20]})
        route = (await client.get("/v1/tasks/spam/route")).json()
        assert route == {"weights": {first: 1}, "shadow": second}
        await change("DELETE", "route")
        await change("DELETE", f"versions/{first[:12]}?wait=20")
        assert is_problem(await client.delete("/v1/tasks/spam/versions/canary"), 409, second)
        assert (await client.get("/v1/tasks/spam")).json()["versions"] == [second]
        told = (await client.get("/v1/tasks/spam/history")).json()
        assert [h["digest"] for h in told if h["digest"]][:2] == [first, second]

    with caplog.at_level(logging.INFO, "ken.audit"):
        talk(service, conversation)
    audited = [record.detail for record in caplog.records if record.name == "ken.audit"]  # type: ignore[attr-defined]
    assert audited[0] == {"digest": second, "alias": "live", "allow_other_labels": False}
    assert audited[1] == {"weights": {first: 1}, "shadow": second, "allow_other_labels": False}
    assert [line["digest"] for line in audited[3:]] == [first, second]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/v1/tasks/nobody/promote", {"digest": "0" * 64}, 404, "nobody"),
        ("POST", "/v1/tasks/spam/promote", {"digest": "0" * 64}, 404, "0000"),
        ("POST", "/v1/tasks/spam/promote", {"digest": "latest"}, 404, "latest"),
        ("POST", "/v1/tasks/spam/promote", {}, 422, "digest"),
        ("POST", "/v1/tasks/spam/promote", {"digest": "0" * 64, "to": "live"}, 422, "to"),
        ("POST", "/v1/tasks/spam/promote", {"digest": "0" * 64, "wait": 3600}, 422, "wait"),
        ("POST", "/v1/tasks/spam/rollback", {}, 409, "no earlier version"),
        ("POST", "/v1/tasks/spam/rollback", {"alias": "canary"}, 404, "canary"),
        ("POST", "/v1/tasks/spam/rollback", {"alias": "a b"}, 422, "a b"),
        ("POST", "/v1/tasks/nobody/rollback", {}, 404, "nobody"),
        ("POST", "/v1/tasks/spam@live/rollback", {}, 422, "task"),
        ("POST", "/v1/tasks/spam/versions", {"digest": "0" * 64}, 422, "chunk"),
        ("PUT", "/v1/tasks/spam/route", {"weights": {"canary": 1}}, 404, "canary"),
        ("PUT", "/v1/tasks/spam/route", {"weights": {}}, 422, "weights"),
        ("PUT", "/v1/tasks/spam/route", {"weights": {"live": -1}}, 422, "live"),
        ("PUT", "/v1/tasks/spam/route", {"weights": {"live": "all"}}, 422, "live"),
        ("PUT", "/v1/tasks/spam/route", {"shadow": "canary"}, 404, "canary"),
        ("PUT", "/v1/tasks/spam/route", {"shadow": "@route"}, 422, "@route"),
        ("PUT", "/v1/tasks/spam/route", {"shadow": 1}, 422, "shadow"),
        ("PUT", "/v1/tasks/spam/route", {}, 422, "route"),
        ("POST", "/v1/tasks/spam/route/rollback", None, 409, "spam"),
        ("DELETE", "/v1/tasks/nobody?force=true", None, 404, "nobody"),
        ("DELETE", "/v1/tasks/spam?force=perhaps", None, 422, "force"),
        ("DELETE", f"/v1/tasks/spam/versions/{'0' * 64}", None, 404, "0000"),
    ],
)
def test_a_change_that_cannot_be_made_is_a_problem(
    method: str, path: str, body: dict[str, Any] | None, status: int, word: str, service: Service, talk: Talk
) -> None:
    async def conversation(client: Client) -> httpx.Response:
        return await client.request(method, path, json=body)

    assert is_problem(talk(service, conversation), status, word)


# Split traffic


def test_a_route_splits_traffic_keeps_each_key_at_one_version_and_goes_back_in_one_call(
    service: Service, talk: Talk, publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2, alias="canary")

    async def conversation(client: Client) -> None:
        async def served(**headers: str) -> str:
            response = await client.post(SPAM, json={"inputs": "rain"}, headers=headers)
            assert response.headers["x-ken-delta"] == response.json()["digest"]
            return response.json()["digest"]

        route = "/v1/tasks/spam/route"
        assert (await client.get(route)).json() is None
        assert {await served() for _ in range(10)} == {deltas.spam.digest}
        split = await client.put(f"{route}?wait=20", json={"weights": {"live": 1, "canary": 1}})
        assert split.status_code == 200, split.text
        assert (await client.get(route)).json() == {"weights": {"live": 1, "canary": 1}, "shadow": None}
        both = Counter([await served() for _ in range(60)])
        assert set(both) == {deltas.spam.digest, deltas.spam_2.digest}
        users = {user: {await served(**{"X-Ken-Key": user}) for _ in range(3)} for user in map(str, range(20))}
        assert all(len(versions) == 1 for versions in users.values())
        assert len(set.union(*users.values())) == 2
        pinned = {await served(**{"X-Ken-Delta": deltas.spam.digest}) for _ in range(10)}
        assert pinned == {deltas.spam.digest}
        named = (await client.post("/v1/tasks/spam@canary/predict", json={"inputs": "rain"})).json()["digest"]
        assert named == deltas.spam_2.digest
        await client.put(f"{route}?wait=20", json={"weights": {"canary": 1}})
        assert {await served() for _ in range(10)} == {deltas.spam_2.digest}
        await client.post(f"{route}/rollback?wait=20")
        assert (await client.get(route)).json() == {"weights": {"live": 1, "canary": 1}, "shadow": None}
        await client.delete(f"{route}?wait=20")
        assert {await served() for _ in range(10)} == {deltas.spam.digest}

    talk(service, conversation)


def test_a_shadow_is_shown_with_its_task_remembered_and_taken_back(
    service: Service, talk: Talk, publish: Callable[..., None], deltas: Deltas
) -> None:
    publish("spam", deltas.spam_2, alias="canary")

    async def conversation(client: Client) -> None:
        route = "/v1/tasks/spam/route"
        await client.put(f"{route}?wait=20", json={"shadow": "canary"})
        assert (await client.get(route)).json() == {"weights": {"live": 1}, "shadow": "canary"}
        assert (await client.get("/v1/tasks/spam")).json()["shadow"] == "canary"
        newest = (await client.get("/v1/tasks/spam/history")).json()[0]
        assert (newest["route"], newest["shadow"], newest["previous_shadow"]) == ({"live": 1}, "canary", None)
        await client.post(f"{route}/rollback?wait=20")
        assert (await client.get(route)).json() is None

    talk(service, conversation)


# Versions that would answer otherwise


def test_other_labels_are_refused_by_every_route_that_would_give_them_and_taken_where_that_is_allowed(
    service: Service, talk: Talk, deltas: Deltas
) -> None:
    """The service's store holds both deltas, so that neither needs to be sent."""
    digest, allowed = deltas.topic.digest, {"allow_other_labels": True}
    changes: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/v1/tasks/spam/versions", {"digest": digest, "alias": "canary"}),
        ("POST", "/v1/tasks/spam/versions", {"digest": digest}),
        ("PUT", "/v1/tasks/spam/route", {"weights": {"live": 9, "canary": 1}}),
        ("PUT", "/v1/tasks/spam/route", {"shadow": "canary"}),
        ("POST", "/v1/tasks/spam/promote", {"digest": "canary"}),
    ]

    async def conversation(client: Client) -> None:
        for method, path, body in changes:
            query, waiting = ("?wait=20", {}) if method == "PUT" else ("", {"wait": 20})
            before = (await client.get("/v1/tasks/spam")).json()
            for told in (body, {**body, "allow_other_labels": False}):
                refused = await client.request(method, path, json=told)
                assert is_problem(refused, 409, "'ham', 'spam'", "'art', 'food', 'law', 'sport'", "allow_other_labels")
                assert refused.json()["title"] == "Other labels or kind"
            assert (await client.get("/v1/tasks/spam")).json() == before
            taken = await client.request(method, f"{path}{query}", json={**body, **allowed, **waiting})
            assert taken.json()["pending"] == []
            newest, *_ = (await client.get("/v1/tasks/spam/history")).json()
            assert newest["other_labels"].startswith("labels: only in the live version: 'ham', 'spam'; only in ")
            if path.endswith("versions") and "alias" not in body:
                await client.post("/v1/tasks/spam/rollback", json={"wait": 20})
        assert (await client.get("/v1/tasks/spam/route")).json() == {"weights": {"live": 1}, "shadow": "canary"}
        assert (await client.post(SPAM, json={"inputs": "rain"})).json()["digest"] == digest

    talk(service, conversation)


@pytest.mark.parametrize("wrong", ["yes, please", 2, [], {}])
def test_what_is_allowed_is_said_with_true_or_false(wrong: object, service: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        body = {"weights": {"live": 1}, "allow_other_labels": wrong}
        assert is_problem(await client.put("/v1/tasks/spam/route", json=body), 422, "allow_other_labels")
        only = await client.put("/v1/tasks/spam/route", json={"allow_other_labels": True})
        assert is_problem(only, 422, "this is no route")

    talk(service, conversation)


# The audit log


def test_every_change_leaves_one_line_done_or_refused(
    service: Service, talk: Talk, deltas: Deltas, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(client: Client) -> None:
        await client.post("/v1/tasks/spam/promote", json={"digest": deltas.spam.digest}, headers={"X-Request-Id": "a"})
        await client.post("/v1/tasks/spam/rollback", json={}, headers={"X-Request-Id": "b"})
        await client.get("/v1/tasks/spam")

    with caplog.at_level(logging.INFO, "ken.audit"):
        talk(service, conversation)
    lines = [record for record in caplog.records if record.name == "ken.audit"]
    told = [(r.action, r.outcome, r.task, r.request_id) for r in lines]  # type: ignore[attr-defined]
    assert told == [("promote", "done", "spam", "a"), ("rollback", "refused", "spam", "b")]


def test_garbage_is_collected_with_an_audit_line_that_says_what_was_freed(
    service: Service, talk: Talk, deltas: Deltas, caplog: pytest.LogCaptureFixture
) -> None:
    service.store.deltas.put(deltas.spam_2)
    service.store.deltas.put(deltas.spam_3)
    service.store.leases.hold_for_upload(deltas.spam_3.digest)

    async def conversation(client: Client) -> None:
        found = (await client.post("/v1/store/gc")).json()
        assert (found["deltas"], found["bytes"]) == (1, deltas.spam_2.size)
        assert (found["held_deltas"], found["held_bytes"]) == (1, deltas.spam_3.size)
        assert found["held_until"] > 0

    with caplog.at_level(logging.INFO, "ken.audit"):
        talk(service, conversation)
    (line,) = [record for record in caplog.records if record.name == "ken.audit"]
    assert (line.action, line.outcome, line.task) == ("collect garbage", "done", None)  # type: ignore[attr-defined]
    assert line.detail == {"deltas": 1, "bytes": deltas.spam_2.size}  # type: ignore[attr-defined]
    assert service.store.deltas.has(deltas.spam.digest)


# Keys


@pytest.fixture
def guarded(make_service: MakeService, publish: Callable[..., None], deltas: Deltas) -> Service:
    for task in ("spam", "topic"):
        publish(task, getattr(deltas, task))
    return make_service(admin_token="open-sesame", host="0.0.0.0")


ADMIN = {"Authorization": "Bearer open-sesame"}
READS = [("GET", "/v1/tasks"), ("GET", "/v1/tasks/spam"), ("GET", "/v1/tasks/spam/history"), ("GET", "/v1/base")]
CHANGES = [
    ("POST", "/v1/tasks/spam/promote"),
    ("POST", "/v1/tasks/spam/versions"),
    ("POST", "/v1/tasks/spam/rollback"),
    ("PUT", "/v1/tasks/spam/route"),
    ("DELETE", "/v1/tasks/spam/route"),
    ("POST", "/v1/tasks/spam/route/rollback"),
    ("DELETE", f"/v1/tasks/spam/versions/{'0' * 64}"),
    ("DELETE", "/v1/tasks/spam"),
    ("PUT", f"/v1/uploads/{'0' * 64}/0"),
    ("GET", f"/v1/uploads/{'0' * 64}"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("DELETE", "/v1/keys/0123456789ab"),
    ("POST", "/v1/base/verify"),
    ("POST", "/v1/store/gc"),
]


async def key_for(client: Client, *scopes: str, tasks: tuple[str, ...] = ("*",)) -> dict[str, str]:
    """A new key's header."""
    made = await client.post(
        "/v1/keys?wait=20", json={"name": "test", "scopes": list(scopes), "tasks": list(tasks)}, headers=ADMIN
    )
    assert made.status_code == 201, made.text
    assert made.json()["pending"] == []
    return {"Authorization": f"Bearer {made.json()['token']}"}


def test_without_a_key_nothing_is_told_or_done(guarded: Service, talk: Talk) -> None:
    nobody = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic b3Blbg=="}, {"X-Api-Key": ""})

    async def conversation(client: Client) -> None:
        for (method, path), headers in product([*READS, *CHANGES, ("POST", SPAM)], nobody):
            response = await client.request(method, path, headers=headers)
            assert is_problem(response, 401)
            assert response.headers["www-authenticate"].startswith("Bearer")
            assert "sesame" not in response.text

    talk(guarded, conversation)


def test_a_key_to_predict_changes_nothing(guarded: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "predict")
        assert (await client.post(SPAM, json={"inputs": "rain"}, headers=key)).status_code == 200
        for method, path in CHANGES:
            assert is_problem(await client.request(method, path, headers=key), 403, "predict")

    talk(guarded, conversation)


def test_a_key_for_some_tasks_neither_asks_nor_sees_the_others(guarded: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "predict", tasks=("sp*",))
        assert [t["name"] for t in (await client.get("/v1/tasks", headers=key)).json()] == ["spam"]
        assert (await client.post(SPAM, json={"inputs": "rain"}, headers=key)).status_code == 200
        hidden = await client.post("/v1/tasks/topic/predict", json={"inputs": "rain"}, headers=key)
        absent = await client.post("/v1/tasks/nothing/predict", json={"inputs": "rain"}, headers=key)
        assert is_problem(hidden, 404)
        assert is_problem(absent, 404)
        assert hidden.json()["detail"].replace("topic", "nothing") == absent.json()["detail"]
        near = await client.post("/v1/tasks/spopic/predict", json={"inputs": "rain"}, headers=key)
        assert is_problem(near, 404)
        assert "topic" not in near.text

    talk(guarded, conversation)


def test_a_key_to_publish_publishes_but_neither_deletes_tasks_nor_makes_keys(
    guarded: Service, talk: Talk, deltas: Deltas
) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "publish")
        body = {"digest": deltas.spam.digest}
        assert (await client.post("/v1/tasks/spam/promote", json=body, headers=key)).status_code == 200
        assert (await client.get("/v1/tasks/spam/history", headers=key)).json()[0]["who"].startswith("test/")
        assert is_problem(await client.delete("/v1/tasks/spam?force=true", headers=key), 403, "admin")
        body = {"name": "more", "scopes": ["admin"]}
        assert is_problem(await client.post("/v1/keys", json=body, headers=key), 403, "admin")

    talk(guarded, conversation)


def test_keys_are_listed_without_secrets_and_refused_once_revoked(
    guarded: Service, talk: Talk, store_url: str, namespace: str
) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "predict")
        token = key["Authorization"].removeprefix("Bearer ")
        listed = (await client.get("/v1/keys", headers=ADMIN)).json()
        assert [(k["name"], k["scopes"], k["tasks"]) for k in listed] == [("test", ["predict"], ["*"])]
        secret = token.split("_", 2)[2]
        assert secret not in json.dumps(listed)
        assert secret not in json.dumps(Store(store_url, namespace).keys.all())
        gone = await client.delete(f"/v1/keys/{listed[0]['id']}?wait=20", headers=ADMIN)
        assert gone.status_code == 200
        assert is_problem(await client.post(SPAM, json={"inputs": "rain"}, headers=key), 401)
        assert is_problem(await client.delete(f"/v1/keys/{listed[0]['id']}", headers=ADMIN), 404)

    talk(guarded, conversation)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"scopes": ["predict"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes"),
        ({"name": "x", "scopes": ["predict"], "tasks": []}, "tasks"),
        ({"name": "x", "scopes": ["predict"], "expires_in": 0}, "expires_in"),
        ({"name": "x", "scopes": ["predict"], "hash": "00"}, "hash"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(body: dict[str, Any], word: str, guarded: Service, talk: Talk) -> None:
    async def conversation(client: Client) -> httpx.Response:
        return await client.post("/v1/keys", json=body, headers=ADMIN)

    assert is_problem(talk(guarded, conversation), 422, word)


def test_on_loopback_everything_is_open_until_there_is_a_key_and_never_again_by_itself(
    service: Service,
    make_service: MakeService,
    talk: Talk,
    deltas: Deltas,
    embedded_url: str,
    namespace: str,
    tmp_path: Path,
) -> None:
    ask = {"inputs": "rain"}

    async def first_and_last_key(client: Client) -> None:
        promote = {"digest": deltas.spam.digest}
        assert (await client.post("/v1/tasks/spam/promote", json=promote)).status_code == 200
        made = await client.post("/v1/keys?wait=20", json={"name": "first", "scopes": ["admin"]})
        assert "from now on, servers of this store refuse requests without a key" in made.json()["notice"]
        assert is_problem(await client.post(SPAM, json=ask), 401, "this needs a key: send")
        key = {"Authorization": f"Bearer {made.json()['token']}"}
        assert (await client.post(SPAM, json=ask, headers=key)).status_code == 200
        second = await client.post("/v1/keys?wait=20", json={"name": "second", "scopes": ["admin"]}, headers=key)
        assert second.json()["notice"] is None
        gone = await client.delete(f"/v1/keys/{second.json()['id']}?wait=20", headers=key)
        assert gone.json()["notice"] is None
        gone = await client.delete(f"/v1/keys/{made.json()['id']}?wait=20", headers=key)
        assert "stay locked, after a restart too" in gone.json()["notice"]

    async def locked(client: Client) -> None:
        for response in (
            await client.post(SPAM, json=ask),
            await client.post("/v1/keys", json={"name": "thief", "scopes": ["admin"]}),
        ):
            assert is_problem(response, 401, "ken keys create NAME --scope admin")
            assert "KEN_AUTH=off" in response.json()["detail"]

    async def opened(client: Client) -> None:
        assert (await client.get("/v1/tasks")).status_code == 200

    talk(service, first_and_last_key)
    talk(service, locked)
    talk(make_service(), locked)  # after a restart
    talk(make_service(data_dir=tmp_path / "another"), locked)  # elsewhere
    raw = connect(embedded_url)
    for name in list(raw.scan_iter(f"ken:*{namespace}*", count=1000)):
        raw.delete(name)
    talk(make_service(), locked)  # with the store back empty
    talk(make_service(data_dir=tmp_path / "a third"), locked)  # and elsewhere, which knows it from the store alone
    talk(make_service(auth="off"), opened)
    key, token = new_key("back", ["admin"])
    back = make_service()
    Store(embedded_url, namespace).replicas.wait(Store(embedded_url, namespace).keys.put(key.id, key.record()), 20)

    async def with_the_new_key(client: Client) -> None:
        assert (await client.get("/v1/keys", headers={"X-Api-Key": token})).status_code == 200

    talk(back, with_the_new_key)

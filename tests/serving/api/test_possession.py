"""Who has a digest alone has nothing: keys of some tasks publish what they sent, and learn nothing of others."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from problems import is_problem

from ken_core import DeltaFile
from serving.security.signatures import public_key_of, sign
from serving.service import Service
from serving.store import Store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

Client = httpx.AsyncClient
Headers = dict[str, str]
Talk = Callable[..., Any]
MakeService = Callable[..., Service]

ADMIN = {"Authorization": "Bearer open-sesame"}
NOBODYS = hashlib.sha256(b"what nobody ever uploaded").hexdigest()
CHUNK = 20_000
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(32))


@pytest.fixture
def store(embedded_url: str, namespace: str) -> Store:
    return Store(embedded_url, namespace)


@pytest.fixture
def guarded(make_service: MakeService, publish: Callable[..., None], deltas: Deltas) -> Service:
    """Its tasks are spam, of the keys below, and topic, of others."""
    for task in ("spam", "topic"):
        publish(task, getattr(deltas, task))
    return make_service(admin_token="open-sesame")


async def key_for(client: Client, *tasks: str, scope: str = "publish") -> Headers:
    asked = {"name": "team", "scopes": [scope], "tasks": list(tasks)}
    made = await client.post("/v1/keys?wait=20", json=asked, headers=ADMIN)
    assert made.status_code == 201, made.text
    return {"Authorization": f"Bearer {made.json()['token']}"}


def chunks_of(file: DeltaFile) -> list[bytes]:
    data = file.path.read_bytes()
    return [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]


async def send(client: Client, file: DeltaFile, key: Headers, skip: tuple[int, ...] = ()) -> None:
    for i, chunk in enumerate(chunks_of(file)):
        if i not in skip:
            response = await client.put(f"/v1/uploads/{file.digest}/{i}", content=chunk, headers=key)
            assert response.status_code == 200, response.text


async def make_version(client: Client, task: str, digest: str, key: Headers) -> httpx.Response:
    asked = {"digest": digest, "wait": 20, "allow_other_labels": True}  # whose bytes count is asked here, not which
    return await client.post(f"/v1/tasks/{task}/versions", json=asked, headers=key)


# What a key learns of a digest

Ask = Callable[[Client, str, Headers], Awaitable[httpx.Response]]


async def publishing_part_of_it(client: Client, digest: str, key: Headers) -> httpx.Response:
    await client.put(f"/v1/uploads/{digest}/1", content=b"not all", headers=key)
    return await client.post("/v1/tasks/spam/versions", json={"digest": digest}, headers=key)


async def publishing_something_else(client: Client, digest: str, key: Headers) -> httpx.Response:
    await client.put(f"/v1/uploads/{digest}/0", content=b"something else", headers=key)
    return await client.post("/v1/tasks/spam/versions", json={"digest": digest}, headers=key)


async def what_is_there_after_a_chunk(client: Client, digest: str, key: Headers) -> httpx.Response:
    await client.put(f"/v1/uploads/{digest}/3", content=b"not all", headers=key)
    return await client.get(f"/v1/uploads/{digest}", headers=key)


def predicting(task: str, **headers: str) -> Ask:
    def ask(client: Client, digest: str, key: Headers) -> Awaitable[httpx.Response]:
        named = {name.replace("_", "-"): value.format(digest=digest) for name, value in headers.items()}
        path = f"/v1/tasks/{task.format(digest=digest)}/predict"
        return client.post(path, json={"inputs": "rain"}, headers={**key, **named})

    return ask


def sending(method: str, path: str, **body: Any) -> Ask:
    def ask(client: Client, digest: str, key: Headers) -> Awaitable[httpx.Response]:
        filled = {name: digest if value == "DIGEST" else value for name, value in body.items()}
        if "weights" in body:
            filled["weights"] = {digest: 1}
        return client.request(method, path.format(digest=digest), json=filled or None, headers=key)

    return ask


ASKED: dict[str, Ask] = {
    "what is there": sending("GET", "/v1/uploads/{digest}"),
    "what is there after a chunk": what_is_there_after_a_chunk,
    "a chunk": sending("PUT", "/v1/uploads/{digest}/0", data="not all"),
    "publishing": sending("POST", "/v1/tasks/spam/versions", digest="DIGEST"),
    "publishing to a new task": sending("POST", "/v1/tasks/spam-2/versions", digest="DIGEST"),
    "publishing part of it": publishing_part_of_it,
    "publishing something else": publishing_something_else,
    "promoting": sending("POST", "/v1/tasks/spam/promote", digest="DIGEST"),
    "deleting": sending("DELETE", "/v1/tasks/spam/versions/{digest}?force=true"),
    "routing": sending("PUT", "/v1/tasks/spam/route", weights={}),
    "shadowing": sending("PUT", "/v1/tasks/spam/route", shadow="DIGEST"),
    "pinning": predicting("spam", X_Ken_Delta="{digest}"),
    "naming": predicting("spam@{digest}"),
    "KServe's version": sending("GET", "/v2/models/spam/versions/{digest}"),
}


def told(response: httpx.Response, digest: str) -> tuple[int, str]:
    """What an answer says, whichever digest it was about."""
    return response.status_code, response.text.replace(digest, "D").replace(response.headers["x-request-id"], "R")


def test_of_a_digest_of_others_a_key_is_told_what_it_is_told_of_nobodys(
    guarded: Service, talk: Talk, deltas: Deltas
) -> None:
    digest = deltas.topic.digest

    async def conversation(client: Client) -> dict[str, bool]:
        same = {}
        for name, ask in ASKED.items():
            key = await key_for(client, "spam*")
            same[name] = told(await ask(client, digest, key), digest) == told(await ask(client, NOBODYS, key), NOBODYS)
        return same

    assert talk(guarded, conversation) == dict.fromkeys(ASKED, True)
    tasks = guarded.store.tasks.table().tasks
    assert {name: task.versions for name, task in tasks.items()} == {
        "spam": (deltas.spam.digest,),
        "topic": (digest,),
    }


def test_of_what_others_are_just_uploading_a_key_is_told_nothing(guarded: Service, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: Client) -> None:
        await send(client, deltas.emotion, ADMIN)
        others = await key_for(client, "spam*")
        await send(client, deltas.emotion, others)
        key = await key_for(client, "spam*")
        for asked in ("what is there", "publishing"):
            response = await ASKED[asked](client, deltas.emotion.digest, key)
            assert told(response, deltas.emotion.digest) == told(await ASKED[asked](client, NOBODYS, key), NOBODYS)

    talk(guarded, conversation)


def test_a_digest_that_gc_is_about_to_free_is_told_apart_from_nobodys_by_no_answer(
    guarded: Service, talk: Talk, deltas: Deltas, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.leases._PATIENCE_SECONDS", 0.1)

    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        for asked in ("what is there", "what is there after a chunk", "publishing"):
            response = await ASKED[asked](client, deltas.emotion.digest, key)
            assert told(response, deltas.emotion.digest) == told(await ASKED[asked](client, NOBODYS, key), NOBODYS)

    with store.leases.alone(deltas.emotion.digest):
        talk(guarded, conversation)


def test_a_signature_that_the_store_has_vouches_for_nothing_of_others(
    make_service: MakeService, talk: Talk, deltas: Deltas, store: Store
) -> None:
    store.tasks.publish("topic", deltas.topic, signatures=[sign(SIGNER, deltas.topic.digest)])
    service = make_service(admin_token="open-sesame", trusted_keys=(public_key_of(SIGNER),))

    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        of_others = await ASKED["publishing"](client, deltas.topic.digest, key)
        assert is_problem(of_others, 403, "is not signed")
        of_nobody = await ASKED["publishing"](client, NOBODYS, key)
        assert told(of_others, deltas.topic.digest) == told(of_nobody, NOBODYS)
        assert (await make_version(client, "spam", deltas.topic.digest, ADMIN)).status_code == 200

    talk(service, conversation)


# What a key may publish


def test_who_sends_all_of_a_delta_may_publish_it_whoever_else_has(guarded: Service, talk: Talk, deltas: Deltas) -> None:
    digest = deltas.topic.digest

    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        await send(client, deltas.topic, key, skip=(1,))
        there = (await client.get(f"/v1/uploads/{digest}", headers=key)).json()
        assert (there["complete"], 1 in there["received"], 0 in there["received"]) == (False, False, True)
        assert is_problem(await make_version(client, "spam", digest, key), 422, "lacks chunk 1")
        await send(client, deltas.topic, key, skip=tuple(there["received"]))
        assert (await make_version(client, "spam", digest, key)).status_code == 200
        answer = await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"}, headers=key)
        assert answer.json()["digest"] == digest

    talk(guarded, conversation)


def test_what_a_task_that_a_key_sees_has_need_not_be_sent_again(guarded: Service, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        there = (await client.get(f"/v1/uploads/{deltas.spam.digest}", headers=key)).json()
        assert there["complete"] is True
        chunk = await client.put(f"/v1/uploads/{deltas.spam.digest}/0", content=b"anything", headers=key)
        assert chunk.status_code == 200
        assert (await make_version(client, "spam-too", deltas.spam.digest, key)).status_code == 200

    talk(guarded, conversation)


@pytest.mark.parametrize("of_others", [(), ("spam*",), ("*",)])
def test_the_chunks_of_another_key_count_for_nothing(
    of_others: tuple[str, ...], guarded: Service, talk: Talk, deltas: Deltas
) -> None:
    """Neither an admin's, nor a colleague's, nor those of a key of every task."""

    async def conversation(client: Client) -> None:
        other = await key_for(client, *of_others) if of_others else ADMIN
        key = await key_for(client, "spam*")
        await send(client, deltas.emotion, other)
        await send(client, deltas.emotion, key, skip=(0,))
        assert is_problem(await make_version(client, "spam", deltas.emotion.digest, key), 422, "lacks chunk 0")
        assert (await make_version(client, "emotion" if other is ADMIN else "spam", deltas.emotion.digest, other)
        ).status_code == 200  # fmt: skip
        await send(client, deltas.emotion, key)
        assert (await make_version(client, "spam-3", deltas.emotion.digest, key)).status_code == 200

    talk(guarded, conversation)


def test_a_wrong_chunk_of_a_key_hurts_nobody_else(guarded: Service, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: Client) -> None:
        await send(client, deltas.emotion, ADMIN)
        key = await key_for(client, "spam*")
        await client.put(f"/v1/uploads/{deltas.emotion.digest}/0", content=b"something else", headers=key)
        assert is_problem(await make_version(client, "spam", deltas.emotion.digest, key), 422, "send all of them again")
        assert (await make_version(client, "emotion", deltas.emotion.digest, ADMIN)).status_code == 200

    talk(guarded, conversation)


def test_a_key_publishes_one_upload_to_several_tasks_at_once_and_after_a_refusal(
    guarded: Service, talk: Talk, deltas: Deltas
) -> None:
    digest = deltas.emotion.digest

    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        await send(client, deltas.emotion, key)
        body = {"digest": digest, "alias": "no name"}
        refused = await client.post("/v1/tasks/spam/versions", json=body, headers=key)
        assert is_problem(refused, 422, "no name")
        made = await asyncio.gather(*(make_version(client, f"spam-{i}", digest, key) for i in range(3)))
        assert [response.status_code for response in made] == [200] * 3

    talk(guarded, conversation)


def test_what_cannot_be_served_is_refused_and_dropped(guarded: Service, talk: Talk) -> None:
    data = b"no delta at all"
    digest = hashlib.sha256(data).hexdigest()

    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam*")
        await client.put(f"/v1/uploads/{digest}/0", content=data, headers=key)
        assert is_problem(await make_version(client, "spam", digest, key), 422, "cannot be served here")
        assert (await client.get(f"/v1/uploads/{digest}", headers=key)).json()["received"] == []

    talk(guarded, conversation)
    assert not guarded.store.deltas.has(digest)


def test_an_admin_of_some_tasks_must_have_what_it_publishes_too(guarded: Service, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: Client) -> None:
        key = await key_for(client, "spam", scope="admin")
        assert is_problem(await make_version(client, "spam", deltas.topic.digest, key), 422, "lacks chunk 0")

    talk(guarded, conversation)


def test_a_key_of_every_task_and_an_open_server_still_publish_what_is_there(
    guarded: Service, make_service: MakeService, talk: Talk, deltas: Deltas
) -> None:
    async def with_a_key(client: Client) -> None:
        key = await key_for(client, "*")
        assert (await client.get(f"/v1/uploads/{deltas.topic.digest}", headers=key)).json()["complete"] is True
        assert (await make_version(client, "spam", deltas.topic.digest, key)).status_code == 200

    async def with_none(client: Client) -> None:
        assert (await client.get(f"/v1/uploads/{deltas.topic.digest}")).json()["complete"] is True
        assert (await make_version(client, "spam", deltas.topic.digest, {})).status_code == 200

    talk(guarded, with_a_key)
    talk(make_service(auth="off"), with_none)


# Beside gc


def test_chunks_of_one_key_expire_and_gc_neither_counts_nor_frees_them(
    store: Store, deltas: Deltas, embedded_url: str, namespace: str
) -> None:
    raw = connect(embedded_url)
    for i, chunk in enumerate(chunks_of(deltas.spam)):
        store.own_uploads.put_chunk("team/1", deltas.spam.digest, i, chunk)
    (parts,) = raw.scan_iter(f"ken:{namespace}:*", count=1000)
    assert 590 < raw.ttl(parts) <= 600
    assert store.garbage.collect().deltas == 0
    raw.expire(parts, 100)
    assert len(store.own_uploads.progress("team/1", deltas.spam.digest).received) == len(chunks_of(deltas.spam))
    assert raw.ttl(parts) > 100
    assert not raw.exists(f"ken:{{{namespace}}}:upload:{deltas.spam.digest}")


def test_what_one_key_committed_is_held_for_its_publication_and_its_chunks_for_a_minute(
    store: Store, deltas: Deltas, guarded: Service, embedded_url: str, namespace: str
) -> None:
    raw, file = connect(embedded_url), deltas.emotion
    for i, chunk in enumerate(chunks_of(file)):
        store.own_uploads.put_chunk("team/1", file.digest, i, chunk)
    store.own_uploads.commit("team/1", file.digest, guarded.vetting.fitness.check, guarded.cache.files.folder)
    assert store.garbage.collect().deltas == 0
    assert raw.ttl(f"ken:{namespace}:own-parts:{{{file.digest}}}:team/1") <= 60
    assert store.tasks.publish_digest("spam", file.digest, allow_other_labels=True)

"""Publishing over HTTP: chunks, what is found fit to serve, and what never becomes visible."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from problems import is_problem
from uploading import publish, upload

from ken_core import DeltaFile
from serving.service import Service
from serving.store import CHUNK_BYTES, Store
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas, Tiny, write_base, write_tuned

Client = httpx.AsyncClient
Talk = Callable[..., Any]
MakeService = Callable[..., Service]


@pytest.fixture
def empty(make_service: MakeService) -> Service:
    """A service without tasks."""
    return make_service()


def test_an_uploaded_delta_answers_once_it_is_a_version(empty: Service, talk: Talk, deltas: Deltas) -> None:
    data = deltas.spam.path.read_bytes()

    async def conversation(client: Client) -> None:
        digest = await upload(client, data)
        assert digest == deltas.spam.digest
        assert (await client.get("/v1/tasks")).json() == []
        assert (await publish(client, "spam", digest, alias="canary")).status_code == 200
        answer = await client.post("/v1/tasks/spam@canary/predict", json={"inputs": "rain"})
        assert answer.json()["digest"] == digest
        assert is_problem(await client.post("/v1/tasks/spam/predict", json={"inputs": "rain"}), 404, "live")

    talk(empty, conversation)


def test_an_upload_goes_on_where_it_was_cut_and_may_be_repeated(empty: Service, talk: Talk, deltas: Deltas) -> None:
    data = deltas.spam.path.read_bytes()
    digest, half = deltas.spam.digest, len(data) // 2

    async def conversation(client: Client) -> None:
        status = f"/v1/uploads/{digest}"
        assert (await client.get(status)).json()["received"] == []
        await client.put(f"{status}/0", content=data[:half])
        there = (await client.get(status)).json()
        assert (there["received"], there["bytes"], there["complete"]) == ([0], half, False)
        for _ in range(2):
            await client.put(f"{status}/1", content=data[half:])
        for _ in range(2):
            assert (await publish(client, "spam", digest)).status_code == 200
        assert (await client.get(status)).json()["complete"] is True

    talk(empty, conversation)


def damaged(file: DeltaFile) -> bytes:
    data = bytearray(file.path.read_bytes())
    data[-5] ^= 0xFF
    return bytes(data)


def foreign(tiny: Tiny, tmp_path: Path) -> bytes:
    other = Tiny(tmp_path, write_base(tmp_path / "other-bert", seed=77))
    return other.delta(write_tuned(other.base_folder, tmp_path / "foreign", ["no", "yes"], seed=78)).path.read_bytes()


UNFIT: dict[str, Callable[[Tiny, Deltas, Path], bytes]] = {
    "text": lambda tiny, deltas, tmp_path: b"not a delta at all" * 100,
    "cut short": lambda tiny, deltas, tmp_path: deltas.spam.path.read_bytes()[:-100],
    "with a flipped bit": lambda tiny, deltas, tmp_path: damaged(deltas.spam),
    "of another base": lambda tiny, deltas, tmp_path: foreign(tiny, tmp_path),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_file_that_cannot_be_served_never_becomes_visible(
    what: str, empty: Service, talk: Talk, tiny: Tiny, deltas: Deltas, tmp_path: Path
) -> None:
    data = UNFIT[what](tiny, deltas, tmp_path)

    async def conversation(client: Client) -> None:
        response = await publish(client, "spam", await upload(client, data))
        assert is_problem(response, 422, "cannot be served here")
        assert str(tmp_path) not in response.text
        assert ".partial" not in response.text
        assert (await client.get("/v1/tasks")).json() == []

    talk(empty, conversation)
    assert not list(empty.cache.files.folder.glob(".*"))


def test_a_version_that_is_asked_for_too_early_is_refused_and_may_be_uploaded_again(
    empty: Service, talk: Talk, deltas: Deltas
) -> None:
    data = deltas.spam.path.read_bytes()

    async def conversation(client: Client) -> None:
        await client.put(f"/v1/uploads/{deltas.spam.digest}/0", content=data[: len(data) // 2])
        assert is_problem(await publish(client, "spam", deltas.spam.digest), 422, deltas.spam.digest)
        assert (await client.get("/v1/tasks")).json() == []
        assert (await publish(client, "spam", await upload(client, data))).status_code == 200

    talk(empty, conversation)


def test_chunks_that_are_not_the_digests_are_refused(empty: Service, talk: Talk, deltas: Deltas) -> None:
    digest = hashlib.sha256(b"something else").hexdigest()

    async def conversation(client: Client) -> None:
        await client.put(f"/v1/uploads/{digest}/0", content=deltas.spam.path.read_bytes())
        assert is_problem(await publish(client, "spam", digest), 422, digest)

    talk(empty, conversation)


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        (f"/v1/uploads/{'0' * 64}/0", b"", 400),
        (f"/v1/uploads/{'0' * 64}/-1", b"x", 422),
        (f"/v1/uploads/{'0' * 64}/99999999", b"x", 422),
        (f"/v1/uploads/{'0' * 64}/first", b"x", 422),
        ("/v1/uploads/latest/0", b"x", 422),
        (f"/v1/uploads/{'0' * 64}/0", bytes(CHUNK_BYTES + 1), 413),
    ],
)
def test_a_chunk_that_cannot_be_meant_is_refused(
    path: str, content: bytes, status: int, empty: Service, talk: Talk
) -> None:
    async def conversation(client: Client) -> httpx.Response:
        return await client.put(path, content=content)

    assert is_problem(talk(empty, conversation), status)


def test_publishers_of_one_delta_at_once_all_succeed(
    empty: Service, talk: Talk, deltas: Deltas, embedded_url: str, namespace: str
) -> None:
    data = deltas.topic.path.read_bytes()

    async def conversation(client: Client) -> None:
        async def one(i: int) -> int:
            return (await publish(client, f"task-{i}", await upload(client, data, 1000))).status_code

        assert set(await asyncio.gather(*map(one, range(4)))) == {200}

    talk(empty, conversation)
    store = Store(embedded_url, namespace)
    assert {t.aliases["live"] for t in store.tasks.table().tasks.values()} == {deltas.topic.digest}
    store.garbage.collect()
    assert store.deltas.has(deltas.topic.digest)


def test_a_store_without_room_is_answered_with_507(
    make_service: MakeService, private_url: str, talk: Talk, deltas: Deltas
) -> None:
    service, raw = make_service(private_url), connect(private_url)

    async def conversation(client: Client) -> None:
        digest = await upload(client, deltas.spam.path.read_bytes())
        raw.config_set("maxmemory", "1")
        refused = await publish(client, "spam", digest)
        assert is_problem(refused, 507, "nothing was changed")
        assert "ken gc" in refused.json()["detail"]
        assert "retry-after" not in refused.headers
        chunk = await client.put(f"/v1/uploads/{digest}/0", content=b"data")
        assert is_problem(chunk, 507, "no room for chunk 0")
        raw.config_set("maxmemory", "0")
        assert (await client.get(f"/v1/uploads/{digest}")).json()["received"] == []

    talk(service, conversation)

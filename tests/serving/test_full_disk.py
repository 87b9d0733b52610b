"""A replica whose folder of deltas takes no more files: it answers from memory, and says what it cannot do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from problems import is_problem
from small_disk import filled, mounted
from uploading import publish as make_version
from uploading import upload

from ken_core import DeltaFile
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import Deltas

Talk = Callable[..., Any]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of the service's deltas, on a small disk."""
    with mounted(tmp_path / "service/deltas") as folder:
        yield folder


@pytest.fixture
def full(
    disk: Path, make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas
) -> Iterator[Service]:
    """A service with three tasks, none of which it has ever loaded, on a full disk."""
    for task in ("emotion", "topic", "spam"):
        publish(task, getattr(deltas, task))
    service = make_service()
    filled(disk / "ballast")
    yield service
    service.stop()


async def ask(client: httpx.AsyncClient, *tasks: str) -> list[int]:
    """The statuses of requests for tasks."""
    answers = [await client.post(f"/v1/tasks/{task}/predict", json={"inputs": "rain"}) for task in tasks]
    return [answer.status_code for answer in answers]


async def disk_up(client: httpx.AsyncClient) -> str:
    lines = (await client.get("/metrics")).text.splitlines()
    (line,) = (line for line in lines if line.startswith("ken_disk_up"))
    return line.rpartition(" ")[2]


def test_every_task_is_answered_and_one_line_of_the_log_and_a_metric_say_why_nothing_is_kept(
    full: Service, disk: Path, talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        assert await disk_up(client) == "1.0"
        assert await ask(client, "emotion", "topic", "spam") == [200, 200, 200]
        assert await disk_up(client) == "0.0"

    talk(full, conversation)
    (told,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert "No space left on device" in told.getMessage()
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_it_is_used_again_when_it_has_room(full: Service, disk: Path, talk: Talk, deltas: Deltas) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        assert await ask(client, "emotion") == [200]
        (disk / "ballast").unlink()
        assert await ask(client, "topic") == [200]
        assert await disk_up(client) == "1.0"

    talk(full, conversation)
    assert [path.name for path in disk.iterdir()] == [deltas.topic.digest]


def test_the_metric_says_that_it_has_room_again_though_no_delta_is_fetched(
    full: Service, disk: Path, talk: Talk, deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.tiers.disk_trouble._PROBE_SECONDS", 0)

    async def conversation(client: httpx.AsyncClient) -> None:
        assert await ask(client, "emotion") == [200]
        assert await disk_up(client) == "0.0"
        (disk / "ballast").unlink()
        filled(disk / "ballast", room=deltas.emotion.size // 2)
        assert await disk_up(client) == "0.0"
        (disk / "ballast").unlink()
        assert await disk_up(client) == "1.0"

    talk(full, conversation)
    assert list(disk.iterdir()) == []


def test_publishing_is_refused_with_the_reason_and_the_chunks_are_kept_until_there_is_room(
    full: Service, disk: Path, talk: Talk, deltas: Deltas
) -> None:
    async def conversation(client: httpx.AsyncClient) -> None:
        digest = await upload(client, deltas.spam_2.path.read_bytes())
        refused = await make_version(client, "spam", digest)
        assert is_problem(refused, 503, "No space left on device")
        assert "make room" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        (disk / "ballast").unlink()
        assert (await make_version(client, "spam", digest)).status_code == 200

    talk(full, conversation)


def test_a_delta_of_the_store_that_was_never_tried_is_refused_with_the_reason_too(
    full: Service, talk: Talk, deltas: Deltas, store_of: Callable[[DeltaFile], Store]
) -> None:
    store_of(deltas.spam_3)

    async def conversation(client: httpx.AsyncClient) -> None:
        assert is_problem(await make_version(client, "spam", deltas.spam_3.digest), 503, "No space left on device")

    talk(full, conversation)


@pytest.fixture
def store_of(embedded_url: str, namespace: str) -> Callable[[DeltaFile], Store]:
    """Put a delta into the service's store, as a version of nothing."""

    def put(file: DeltaFile) -> Store:
        store = Store(embedded_url, namespace)
        store.deltas.put(file)
        return store

    return put


def test_a_replica_starts_and_answers_where_its_data_folder_cannot_even_be_made(
    make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas, talk: Talk, tmp_path: Path
) -> None:
    publish("spam", deltas.spam)
    (tmp_path / "in the way").write_bytes(b"")
    service = make_service(data_dir=tmp_path / "in the way/data")

    async def conversation(client: httpx.AsyncClient) -> None:
        assert await ask(client, "spam") == [200]
        assert await disk_up(client) == "0.0"

    talk(service, conversation)

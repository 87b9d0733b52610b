"""A store without room: what a publish that fails leaves behind, and what still works."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ken_core import DeltaFile
from serving.errors import StoreFullError
from serving.store import Store
from serving.store.leases import LEASE_SECONDS
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

CHUNK = 256 << 10
ROOM = 2 << 20


@pytest.fixture
def made(deltas: Deltas, tmp_path: Path) -> Callable[[int], DeltaFile]:
    """Files of so many bytes. Their manifests are those of another delta: the store does not look into files."""

    def make(size: int) -> DeltaFile:
        data = os.urandom(size)
        path = tmp_path / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return DeltaFile(path, deltas.spam.manifest, size, path.name)

    return make


@pytest.fixture
def raw(private_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a server that takes `ROOM` bytes more. Chunks are short, so that an upload stops in its middle."""
    monkeypatch.setattr("serving.store.deltas.CHUNK_BYTES", CHUNK)
    client = connect(private_url)
    limit(client, ROOM)
    return client


def limit(client: Any, more: int) -> None:
    client.config_set("maxmemory", str(client.info("memory")["used_memory"] + more))


def kept(client: Any) -> list[bytes]:
    """Keys that hold bytes of deltas."""
    return [
        key for kind in ("delta", "blob", "parts", "own-parts") for key in client.scan_iter(f"ken:default:{kind}:*")
    ]


def test_a_publish_that_finds_the_store_full_says_what_to_do_and_leaves_room_for_the_next(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile], tmp_path: Path
) -> None:
    store, large, small = Store(private_url), made(4 << 20), made(1 << 20)
    with pytest.raises(StoreFullError, match=r"is full: .* needs 4\.2 MB.*`ken rm`.*`ken gc`.*maxmemory") as refused:
        store.tasks.publish("large", large)
    assert (refused.value.status, refused.value.retry_after) == (507, None)
    assert kept(raw) == []
    store.tasks.publish("small", small)
    store.deltas.fetch(small.digest, tmp_path / "fetched")


def test_a_delta_that_fills_the_store_to_its_last_byte_is_not_left_without_a_task(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile]
) -> None:
    store, file = Store(private_url), made(3 * CHUNK)
    written: list[int] = []

    def fill(size: int) -> None:
        written.append(size)
        if sum(written) == file.size:
            limit(raw, -1)

    with pytest.raises(StoreFullError):
        store.deltas.put(file, fill)
    assert kept(raw) == []


def test_chunks_sent_to_a_full_store_are_dropped_with_the_first_that_has_no_room(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile]
) -> None:
    store, large = Store(private_url), made(4 << 20)
    data = large.path.read_bytes()
    senders: list[Callable[[int, bytes], None]] = [
        lambda i, chunk: store.uploads.put_chunk(large.digest, i, chunk),
        lambda i, chunk: store.own_uploads.put_chunk("me", large.digest, i, chunk),
    ]

    def send_all(send: Callable[[int, bytes], None]) -> None:
        for i in range(16):
            send(i, data[i * CHUNK : (i + 1) * CHUNK])

    for send in senders:
        with pytest.raises(StoreFullError, match=r"no room for chunk \d+ of delta"):
            send_all(send)
        assert kept(raw) == []


def test_an_upload_that_does_not_fit_beside_its_own_chunks_is_dropped(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile], tmp_path: Path
) -> None:
    store, file = Store(private_url), made(5 * CHUNK)
    data = file.path.read_bytes()

    def shared() -> None:
        for i in range(5):
            store.uploads.put_chunk(file.digest, i, data[i * CHUNK : (i + 1) * CHUNK])
        store.uploads.commit(file.digest, lambda path: file, tmp_path)

    def own() -> None:
        for i in range(5):
            store.own_uploads.put_chunk("me", file.digest, i, data[i * CHUNK : (i + 1) * CHUNK])
        store.own_uploads.commit("me", file.digest, lambda path: file, tmp_path)

    for publish in (shared, own):
        with pytest.raises(StoreFullError, match=f"no room for delta {file.digest}"):
            publish()
        assert kept(raw) == []


def test_a_full_store_still_deletes_and_frees(raw: Any, private_url: str, made: Callable[[int], DeltaFile]) -> None:
    store, file = Store(private_url), made(1 << 20)
    store.tasks.publish("old", file)
    limit(raw, -CHUNK)
    with pytest.raises(StoreFullError):
        store.deltas.put(made(CHUNK))
    store.tasks.delete("old", force=True)
    found = store.garbage.collect()
    assert (found.deltas, found.bytes) == (1, 1 << 20)
    store.tasks.publish("new", made(CHUNK))


# Uploads that fail, and uploads beside them


def stop(size: int) -> None:
    raise KeyboardInterrupt


def test_an_upload_that_fails_beside_another_of_the_same_delta_does_not_spoil_it(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile], tmp_path: Path
) -> None:
    store, file = Store(private_url), made(3 * CHUNK)
    told: list[int] = []

    def fail_beside(size: int) -> None:
        told.append(size)
        if len(told) == 2:
            with pytest.raises(KeyboardInterrupt):
                Store(private_url).deltas.put(file, stop)

    store.deltas.put(file, fail_beside)
    store.deltas.fetch(file.digest, tmp_path / "fetched")
    assert sum(told) == file.size


def test_an_upload_that_fails_leaves_a_complete_delta_whole(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile], tmp_path: Path
) -> None:
    store, file = Store(private_url), made(3 * CHUNK)
    store.deltas.put(file)
    with pytest.raises(KeyboardInterrupt):
        store.deltas.put(file, stop)
    store.deltas.fetch(file.digest, tmp_path / "fetched")
    assert {raw.ttl(key) for key in kept(raw)} == {-1}


def test_chunks_expire_until_the_delta_is_complete(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile]
) -> None:
    store, file = Store(private_url), made(3 * CHUNK)
    seen: list[int] = []
    store.deltas.put(file, lambda size: seen.extend(raw.ttl(key) for key in kept(raw)))
    assert len(seen) == 1 + 2 + 3
    assert all(0 < seconds <= LEASE_SECONDS for seconds in seen)
    assert {raw.ttl(key) for key in kept(raw)} == {-1}


def test_what_was_uploaded_in_chunks_expires_until_it_is_committed(
    raw: Any, private_url: str, made: Callable[[int], DeltaFile], tmp_path: Path
) -> None:
    store, file = Store(private_url), made(CHUNK)
    store.uploads.put_chunk(file.digest, 0, file.path.read_bytes())
    (parts,) = kept(raw)
    assert 0 < raw.ttl(parts) <= LEASE_SECONDS
    raw.expire(parts, 5)
    store.uploads.progress(file.digest)
    assert raw.ttl(parts) > 5
    store.uploads.commit(file.digest, lambda path: file, tmp_path)
    assert {raw.ttl(key) for key in kept(raw)} == {-1}


def test_on_a_full_store_a_change_is_refused_with_what_to_do_but_a_rollback_is_made(
    private_url: str, deltas: Deltas
) -> None:
    store, client = Store(private_url), connect(private_url)
    for file in (deltas.spam, deltas.spam_2):
        store.tasks.publish("spam", file)
    limit(client, -1)
    with pytest.raises(StoreFullError, match=r"takes no change: .*`ken rm`.*`ken gc`.*maxmemory"):
        store.tasks.promote("spam", deltas.spam.digest)
    store.tasks.rollback("spam")
    assert store.tasks.known("spam").aliases["live"] == deltas.spam.digest
    store.tasks.delete("spam", force=True)
    assert store.garbage.collect().deltas == 2

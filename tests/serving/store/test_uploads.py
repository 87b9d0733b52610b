"""Deltas that come in chunks: cut off and resumed, wrong, missing, beside `gc`."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ken_core import DeltaFile, DeltaFormatError, deltafile
from serving.errors import InvalidInputError, TooLargeError, UnknownTaskError
from serving.store import CHUNK_BYTES, MOST_CHUNKS, Collected, Store, Upload
from serving.store.leases import LEASE_SECONDS
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

FORK = multiprocessing.get_context("fork")
SIZE = 10_000


def chunks_of(file: DeltaFile, size: int = SIZE) -> list[bytes]:
    data = file.path.read_bytes()
    return [data[i : i + size] for i in range(0, len(data), size)]


def send(store: Store, file: DeltaFile, skip: tuple[int, ...] = ()) -> None:
    for i, chunk in enumerate(chunks_of(file)):
        if i not in skip:
            store.uploads.put_chunk(file.digest, i, chunk)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where commits write; nothing may be left there."""
    made = tmp_path / "commits"
    made.mkdir()
    yield made
    assert list(made.iterdir()) == []


@pytest.fixture
def commit(store: Store, folder: Path) -> Callable[[DeltaFile], None]:
    return lambda file: store.uploads.commit(file.digest, deltafile.open_file, folder)


@pytest.fixture
def visible(store: Store, store_url: str, namespace: str) -> Callable[[DeltaFile], bool]:
    """Whether a reader could come across anything of a delta."""

    def look(file: DeltaFile) -> bool:
        blobs = connect(store_url).scan_iter(f"ken:{namespace}:blob:*", count=1000)
        return store.deltas.has(file.digest) or store.deltas.size(file.digest) is not None or bool(list(blobs))

    return look


Commit = Callable[[DeltaFile], None]
Visible = Callable[[DeltaFile], bool]


def test_what_was_uploaded_and_committed_is_fetched_byte_for_byte(
    store: Store, deltas: Deltas, commit: Commit, tmp_path: Path
) -> None:
    send(store, deltas.spam)
    commit(deltas.spam)
    store.tasks.publish_digest("spam", deltas.spam.digest)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == deltas.spam.path.read_bytes()
    assert store.deltas.manifest(deltas.spam.digest) == deltas.spam.manifest.plain()
    assert store.tasks.table().tasks["spam"].aliases == {"live": deltas.spam.digest}


def test_nothing_is_visible_before_the_commit(store: Store, deltas: Deltas, visible: Visible) -> None:
    send(store, deltas.spam)
    assert not visible(deltas.spam)
    with pytest.raises(UnknownTaskError, match="does not hold a delta"):
        store.tasks.publish_digest("spam", deltas.spam.digest)
    assert store.tasks.table().tasks == {}


def test_after_a_cut_only_what_is_missing_needs_to_be_sent(store: Store, deltas: Deltas, commit: Commit) -> None:
    chunks = chunks_of(deltas.spam)
    assert store.uploads.progress(deltas.spam.digest) == Upload(deltas.spam.digest, (), 0, complete=False)
    send(store, deltas.spam, skip=(1, len(chunks) - 1))
    there = store.uploads.progress(deltas.spam.digest)
    assert there.received == (0, *range(2, len(chunks) - 1))
    assert there.bytes == sum(len(chunks[i]) for i in there.received)
    assert not there.complete
    send(store, deltas.spam, skip=there.received)
    commit(deltas.spam)
    there = store.uploads.progress(deltas.spam.digest)
    assert (there.bytes, there.complete) == (deltas.spam.size, True)


def test_chunks_come_in_any_order_and_as_often_as_one_likes(store: Store, deltas: Deltas, commit: Commit) -> None:
    for i, chunk in reversed([*enumerate(chunks_of(deltas.spam))] * 2):
        store.uploads.put_chunk(deltas.spam.digest, i, chunk)
    commit(deltas.spam)
    assert store.deltas.has(deltas.spam.digest)


def test_a_commit_names_the_chunks_it_lacks_and_keeps_the_others(
    store: Store, deltas: Deltas, commit: Commit, visible: Visible
) -> None:
    send(store, deltas.spam, skip=(0, 2))
    with pytest.raises(InvalidInputError, match="lacks chunk 0, 2;"):
        commit(deltas.spam)
    assert not visible(deltas.spam)
    send(store, deltas.spam, skip=store.uploads.progress(deltas.spam.digest).received)
    commit(deltas.spam)


def test_a_commit_of_nothing_lacks_the_first_chunk(deltas: Deltas, commit: Commit) -> None:
    with pytest.raises(InvalidInputError, match="lacks chunk 0;"):
        commit(deltas.spam)


def test_a_wrong_chunk_has_all_of_them_dropped_and_sent_again(
    store: Store, deltas: Deltas, commit: Commit, visible: Visible
) -> None:
    send(store, deltas.spam)
    store.uploads.put_chunk(deltas.spam.digest, 1, b"something else")
    with pytest.raises(InvalidInputError, match="send all of them again"):
        commit(deltas.spam)
    assert not visible(deltas.spam)
    assert store.uploads.progress(deltas.spam.digest).received == ()
    send(store, deltas.spam)
    commit(deltas.spam)


def test_another_deltas_bytes_are_not_taken(store: Store, deltas: Deltas, commit: Commit, visible: Visible) -> None:
    for i, chunk in enumerate(chunks_of(deltas.topic)):
        store.uploads.put_chunk(deltas.spam.digest, i, chunk)
    with pytest.raises(InvalidInputError, match=f"have the sha256 {deltas.topic.digest}"):
        commit(deltas.spam)
    assert not visible(deltas.spam)
    assert not visible(deltas.topic)


def test_what_is_no_delta_is_refused_and_dropped_though_its_digest_is_right(
    store: Store, folder: Path, store_url: str, namespace: str
) -> None:
    data = b"no delta at all"
    digest = hashlib.sha256(data).hexdigest()
    store.uploads.put_chunk(digest, 0, data)
    with pytest.raises(DeltaFormatError):
        store.uploads.commit(digest, deltafile.open_file, folder)
    assert not store.deltas.has(digest)
    assert not list(connect(store_url).scan_iter(f"ken:{namespace}:*", count=1000))


def test_a_chunk_that_is_too_long_is_refused(store: Store, deltas: Deltas) -> None:
    store.uploads.put_chunk(deltas.spam.digest, 0, b"\0" * CHUNK_BYTES)
    with pytest.raises(TooLargeError, match=f"{CHUNK_BYTES + 1} bytes; send at most {CHUNK_BYTES}"):
        store.uploads.put_chunk(deltas.spam.digest, 1, b"\0" * (CHUNK_BYTES + 1))
    assert store.uploads.progress(deltas.spam.digest).received == (0,)


@pytest.mark.parametrize("i", [-1, MOST_CHUNKS])
def test_a_chunk_has_a_position(i: int, store: Store, deltas: Deltas) -> None:
    with pytest.raises(InvalidInputError, match=f"chunk {i}: expected a position from 0"):
        store.uploads.put_chunk(deltas.spam.digest, i, b"data")


def test_an_empty_chunk_is_refused(store: Store, deltas: Deltas) -> None:
    with pytest.raises(InvalidInputError, match="is empty"):
        store.uploads.put_chunk(deltas.spam.digest, 0, b"")


def test_what_is_no_digest_is_refused_everywhere(store: Store, folder: Path) -> None:
    for call in (
        lambda: store.uploads.put_chunk("latest", 0, b"data"),
        lambda: store.uploads.progress("latest"),
        lambda: store.uploads.commit("latest", deltafile.open_file, folder),
        lambda: store.tasks.publish_digest("spam", "latest"),
    ):
        with pytest.raises(InvalidInputError, match="is no digest"):
            call()


def test_a_commit_may_be_repeated(store: Store, deltas: Deltas, commit: Commit, folder: Path) -> None:
    def never(path: Path) -> DeltaFile:
        raise AssertionError("it was checked already")

    send(store, deltas.spam)
    commit(deltas.spam)
    store.uploads.commit(deltas.spam.digest, never, folder)
    assert store.deltas.has(deltas.spam.digest)


def test_chunks_for_a_delta_that_is_there_change_nothing(
    store: Store, deltas: Deltas, commit: Commit, store_url: str, namespace: str, tmp_path: Path
) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.uploads.put_chunk(deltas.spam.digest, 0, b"something else")
    assert not connect(store_url).exists(f"ken:{namespace}:parts:{{{deltas.spam.digest}}}")
    commit(deltas.spam)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def test_a_committed_delta_becomes_a_version_of_several_tasks(store: Store, deltas: Deltas, commit: Commit) -> None:
    send(store, deltas.spam)
    commit(deltas.spam)
    store.tasks.publish_digest("spam", deltas.spam.digest, who="ada")
    store.tasks.publish_digest("ham", deltas.spam.digest, alias="canary")
    assert {n: t.aliases for n, t in store.tasks.table().tasks.items()} == {
        "spam": {"live": deltas.spam.digest},
        "ham": {"canary": deltas.spam.digest},
    }
    assert [(h["action"], h["who"]) for h in store.history.of("spam")] == [("publish", "ada")]


# Beside gc


def let_the_lease_end(store_url: str, namespace: str, file: DeltaFile) -> None:
    connect(store_url).delete(f"ken:{{{namespace}}}:upload:{file.digest}")


def test_gc_leaves_an_upload_alone_between_chunks_and_takes_it_once_its_lease_has_ended(
    store: Store, deltas: Deltas, store_url: str, namespace: str
) -> None:
    send(store, deltas.spam, skip=(1,))
    sent = store.uploads.progress(deltas.spam.digest).bytes
    left = store.garbage.collect()
    assert (left.deltas, left.held_deltas, left.held_bytes) == (0, 1, sent)
    assert left.held_until is not None
    assert 0 < left.held_until - time.time() <= LEASE_SECONDS + 1
    assert 0 in store.uploads.progress(deltas.spam.digest).received
    let_the_lease_end(store_url, namespace, deltas.spam)
    assert store.garbage.collect() == Collected(1, sent)
    assert store.uploads.progress(deltas.spam.digest).received == ()


def test_gc_leaves_a_committed_delta_alone_until_it_is_published(
    store: Store, deltas: Deltas, commit: Commit, store_url: str, namespace: str
) -> None:
    send(store, deltas.spam)
    commit(deltas.spam)
    assert store.garbage.collect().deltas == 0
    store.tasks.publish_digest("spam", deltas.spam.digest)
    let_the_lease_end(store_url, namespace, deltas.spam)
    assert store.garbage.collect().deltas == 0


def test_a_commit_of_what_is_there_already_holds_gc_off_too(
    store: Store, deltas: Deltas, commit: Commit, store_url: str, namespace: str
) -> None:
    store.deltas.put(deltas.spam)
    commit(deltas.spam)
    assert store.garbage.collect().deltas == 0
    let_the_lease_end(store_url, namespace, deltas.spam)
    assert store.garbage.collect() == Collected(1, deltas.spam.size)


def test_a_commit_that_takes_longer_than_a_lease_still_leaves_time_to_publish(
    store: Store, deltas: Deltas, folder: Path, store_url: str, namespace: str
) -> None:
    def check_slowly(path: Path) -> DeltaFile:
        let_the_lease_end(store_url, namespace, deltas.spam)
        return deltafile.open_file(path)

    send(store, deltas.spam)
    store.uploads.commit(deltas.spam.digest, check_slowly, folder)
    assert store.garbage.collect().deltas == 0


def test_gc_drops_chunks_that_were_left_beside_a_published_delta(
    store: Store, deltas: Deltas, store_url: str, namespace: str
) -> None:
    send(store, deltas.spam, skip=(0,))
    store.tasks.publish("spam", deltas.spam)
    let_the_lease_end(store_url, namespace, deltas.spam)
    assert store.garbage.collect().deltas == 0
    assert not connect(store_url).exists(f"ken:{namespace}:parts:{{{deltas.spam.digest}}}")
    assert store.deltas.has(deltas.spam.digest)


class Interrupted(Store):
    """A store on which something happens just after this client has looked whether a delta is there."""

    happens: Callable[[], object] | None = None

    def __init__(self, url: str, namespace: str) -> None:
        super().__init__(url, namespace)
        self._has, self.deltas.has = self.deltas.has, self._interrupted  # type: ignore[method-assign]

    def _interrupted(self, digest: str) -> bool:
        found = self._has(digest)
        happens, self.happens = self.happens, None
        if happens:
            happens()
        return found


def test_gc_does_not_come_between_looking_for_a_delta_and_publishing_it(
    store: Store, store_url: str, namespace: str, deltas: Deltas, tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    publisher = Interrupted(store_url, namespace)
    publisher.happens = store.garbage.collect
    publisher.tasks.publish_digest("spam", deltas.spam.digest)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def test_a_commit_that_another_one_overtakes_ends_well(
    store: Store, store_url: str, namespace: str, deltas: Deltas, commit: Commit, folder: Path
) -> None:
    send(store, deltas.spam)
    slow = Interrupted(store_url, namespace)
    slow.happens = lambda: commit(deltas.spam)
    slow.uploads.commit(deltas.spam.digest, deltafile.open_file, folder)
    assert store.deltas.has(deltas.spam.digest)


def test_uploaders_of_one_delta_in_several_processes_beside_gc_all_succeed(
    store: Store, store_url: str, namespace: str, deltas: Deltas, folder: Path, tmp_path: Path
) -> None:
    stop: Any = FORK.Event()

    def upload(task: str) -> None:
        own = Store(store_url, namespace)
        send(own, deltas.spam)
        own.uploads.commit(deltas.spam.digest, deltafile.open_file, folder)
        own.tasks.publish_digest(task, deltas.spam.digest)

    def collect() -> None:
        own = Store(store_url, namespace)
        while not stop.is_set():
            own.garbage.collect()

    collector = FORK.Process(target=collect)
    uploaders = [FORK.Process(target=upload, args=(f"task-{i}",)) for i in range(4)]
    for child in (collector, *uploaders):
        child.start()
    for child in uploaders:
        child.join(60)
    stop.set()
    collector.join(60)
    assert [child.exitcode for child in (collector, *uploaders)] == [0] * 5
    assert {t.aliases["live"] for t in store.tasks.table().tasks.values()} == {deltas.spam.digest}
    assert len(store.tasks.table().tasks) == 4
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")

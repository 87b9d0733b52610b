"""The store on a real Valkey: what it keeps, what a reader sees, what is refused."""

from __future__ import annotations

import hashlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ken_core import DeltaFile, KenError, deltafile, open_file
from serving.errors import ConflictError, InvalidInputError, StoreError, UnknownTaskError
from serving.placement.plan import Placement
from serving.routing.routes import Route
from serving.security.signatures import Signature
from serving.store import Collected, Store
from serving.store.leases import LEASE_SECONDS
from serving.store.placements import Load
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas

NOWHERE = "a" * 64


@pytest.fixture
def raw(store_url: str) -> Any:
    """A client of our own, to look at keys and to damage them."""
    return connect(store_url)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deltas of a tiny model would fit one chunk."""
    monkeypatch.setattr("serving.store.deltas.CHUNK_BYTES", 10_000)


def chunk(namespace: str, digest: str, i: int) -> str:
    return f"ken:{namespace}:blob:{{{digest}}}:{i}"


# Deltas


def test_a_fetched_delta_is_byte_for_byte_what_was_put(
    store: Store, deltas: Deltas, tmp_path: Path, small_chunks: None
) -> None:
    store.deltas.put(deltas.spam)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == deltas.spam.path.read_bytes()


def test_chunks_are_of_the_size_the_layout_says(
    store: Store, deltas: Deltas, raw: Any, namespace: str, small_chunks: None
) -> None:
    store.deltas.put(deltas.spam)
    count = -(-deltas.spam.size // 10_000)
    sizes = [raw.strlen(chunk(namespace, deltas.spam.digest, i)) for i in range(count + 1)]
    assert sizes == [*[10_000] * (count - 1), deltas.spam.size % 10_000, 0]


def test_the_progress_of_an_upload_adds_up_to_its_size(store: Store, deltas: Deltas, small_chunks: None) -> None:
    told: list[int] = []
    store.deltas.put(deltas.spam, told.append)
    assert sum(told) == deltas.spam.size
    assert len(told) > 1


def test_manifest_and_size_are_those_of_the_file(store: Store, deltas: Deltas) -> None:
    store.deltas.put(deltas.topic)
    assert store.deltas.manifest(deltas.topic.digest) == deltas.topic.manifest.plain()
    assert store.deltas.size(deltas.topic.digest) == deltas.topic.size


def test_a_delta_that_was_never_put_is_unknown(store: Store, tmp_path: Path) -> None:
    assert not store.deltas.has(NOWHERE)
    assert store.deltas.manifest(NOWHERE) is None
    assert store.deltas.size(NOWHERE) is None
    with pytest.raises(StoreError, match=f"does not hold delta {NOWHERE}"):
        store.deltas.fetch(NOWHERE, tmp_path / "fetched")


def flip_a_byte(raw: Any, key: str) -> None:
    value = bytearray(raw.get(key))
    value[len(value) // 2] ^= 1
    raw.set(key, bytes(value))


def lose(raw: Any, key: str) -> None:
    raw.delete(key)


def lengthen(raw: Any, key: str) -> None:
    raw.append(key, b"\0" * 1_000_000)


def shorten(raw: Any, key: str) -> None:
    raw.set(key, raw.get(key)[:-1])


DAMAGES = [flip_a_byte, lose, lengthen, shorten]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_refused_and_leaves_no_file(
    damage: Callable[[Any, str], None],
    store: Store, deltas: Deltas, raw: Any, namespace: str, tmp_path: Path, small_chunks: None,
) -> None:  # fmt: skip
    store.deltas.put(deltas.spam)
    damage(raw, chunk(namespace, deltas.spam.digest, 2))
    with pytest.raises(StoreError, match=f"delta {deltas.spam.digest} .* is damaged"):
        store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lose, flip_a_byte])
def test_publishing_again_repairs_a_damaged_delta_as_the_message_says(
    damage: Callable[[Any, str], None],
    store: Store, deltas: Deltas, raw: Any, namespace: str, tmp_path: Path, small_chunks: None,
) -> None:  # fmt: skip
    store.tasks.publish("spam", deltas.spam)
    damage(raw, chunk(namespace, deltas.spam.digest, 2))
    store.tasks.publish("spam", deltas.spam)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == deltas.spam.path.read_bytes()


def overwrite(file: DeltaFile, other: DeltaFile) -> None:
    shutil.copyfile(other.path, file.path)


@pytest.mark.parametrize("after", ["opening", "the first chunk"])
def test_a_file_that_was_replaced_damages_no_delta(
    after: str, store: Store, deltas: Deltas, tmp_path: Path, small_chunks: None
) -> None:
    store.tasks.publish("spam", deltas.spam)
    file = open_file(Path(shutil.copy(deltas.spam.path, tmp_path / "spam.ken")))
    if after == "opening":
        overwrite(file, deltas.topic)
    with pytest.raises(ConflictError, match="changed since it was opened"):
        store.deltas.put(file, lambda size: overwrite(file, deltas.topic))
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def test_a_failed_fetch_leaves_an_older_file_as_it_was(
    store: Store, deltas: Deltas, raw: Any, namespace: str, tmp_path: Path
) -> None:
    store.deltas.put(deltas.spam)
    flip_a_byte(raw, chunk(namespace, deltas.spam.digest, 0))
    (tmp_path / "fetched").write_bytes(b"older")
    with pytest.raises(StoreError):
        store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"older"


# Interrupted uploads and garbage


def interrupt(size: int) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_upload_leaves_nothing(
    store: Store, deltas: Deltas, raw: Any, namespace: str, small_chunks: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.tasks.publish("spam", _interrupting(store, deltas.spam))
    assert not list(raw.scan_iter(f"ken:{namespace}:*", count=1000))
    assert not store.deltas.has(deltas.spam.digest)
    assert store.tasks.table().tasks == {}


def _interrupting(store: Store, file: DeltaFile) -> DeltaFile:
    store.deltas.put(file, interrupt)
    return file


def test_gc_collects_the_chunks_of_an_upload_that_died(store: Store, deltas: Deltas, raw: Any, namespace: str) -> None:
    for i in range(2):
        raw.set(chunk(namespace, deltas.spam.digest, i), b"0" * 100, ex=60)
    assert store.garbage.collect() == Collected(1, 200)
    assert not list(raw.scan_iter(f"ken:{namespace}:*", count=1000))


def test_an_interrupted_upload_can_be_repeated(
    store: Store, deltas: Deltas, tmp_path: Path, small_chunks: None
) -> None:
    with pytest.raises(KeyboardInterrupt):
        store.deltas.put(deltas.spam, interrupt)
    store.deltas.put(deltas.spam)
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def test_gc_frees_what_no_task_has_and_says_how_much(store: Store, deltas: Deltas, raw: Any, namespace: str) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    store.tasks.delete("spam", force=True)
    assert store.garbage.collect() == Collected(1, deltas.spam.size)
    assert not store.deltas.has(deltas.spam.digest)
    assert not raw.exists(chunk(namespace, deltas.spam.digest, 0))


def test_gc_keeps_every_version_of_a_task_and_what_two_tasks_share(
    store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2)
    store.tasks.publish("twin", deltas.spam)
    store.tasks.delete("twin", force=True)
    assert store.garbage.collect().deltas == 0
    for file in (deltas.spam, deltas.spam_2):
        store.deltas.fetch(file.digest, tmp_path / file.digest)


def test_gc_keeps_what_is_being_uploaded(store: Store, deltas: Deltas, tmp_path: Path, small_chunks: None) -> None:
    store.deltas.put(deltas.spam, lambda size: _assert_nothing_collected(store))
    store.deltas.fetch(deltas.spam.digest, tmp_path / "fetched")


def _assert_nothing_collected(store: Store) -> None:
    assert store.garbage.collect().deltas == 0


def test_gc_reads_the_versions_of_the_tasks_once_however_many_deltas_there_are(store: Store, deltas: Deltas) -> None:
    for file in (deltas.spam, deltas.spam_2, deltas.topic):
        store.deltas.put(file)
    store.tasks.publish("emotion", deltas.emotion)
    read, calls = store.tasks.versions, list[int]()
    store.tasks.versions = lambda: calls.append(1) or read()  # type: ignore[method-assign,func-returns-value]
    assert store.garbage.collect().deltas == 3
    assert len(calls) == 1
    assert store.tasks.versions() == {deltas.emotion.digest}


def test_gc_keeps_what_became_a_version_while_it_ran(
    store: Store, store_url: str, namespace: str, deltas: Deltas, tmp_path: Path
) -> None:
    """Each delta is published after gc has read the versions and before it comes to the delta."""
    files = {file.digest: file for file in (deltas.spam, deltas.spam_2, deltas.topic)}
    for file in files.values():
        store.deltas.put(file)
    publisher, delete = Store(store_url, namespace), store.deltas.delete

    def publish_the_others_first(digest: str) -> None:
        delete(digest)
        for other in files.keys() - {digest}:
            publisher.tasks.publish_digest(f"task-{other[:8]}", other)

    store.deltas.delete = publish_the_others_first  # type: ignore[method-assign]
    assert store.garbage.collect().deltas == 1
    for digest in store.tasks.versions():
        store.deltas.fetch(digest, tmp_path / digest)
    assert len(store.tasks.versions()) == 2


def test_gc_says_what_uploads_hold_and_until_when(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    for file in (deltas.spam, deltas.topic, deltas.emotion):
        store.deltas.put(file)
        store.leases.hold_for_upload(file.digest)
    store.deltas.put(deltas.spam_2)
    found = store.garbage.collect()
    assert (found.deltas, found.bytes) == (1, deltas.spam_2.size)
    assert (found.held_deltas, found.held_bytes) == (2, deltas.topic.size + deltas.emotion.size)
    assert found.held_until is not None
    assert 0 < found.held_until - time.time() <= LEASE_SECONDS + 1


def test_gc_does_not_take_another_collection_for_an_upload(store: Store, deltas: Deltas) -> None:
    store.deltas.put(deltas.spam)
    with store.leases.alone(deltas.spam.digest) as alone:
        assert alone
        assert store.garbage.collect() == Collected()


def test_gc_of_one_namespace_leaves_the_others_alone(
    store: Store, store_url: str, namespace: str, deltas: Deltas
) -> None:
    store.deltas.put(deltas.spam)
    assert Store(store_url, f"{namespace}-elsewhere").garbage.collect() == Collected()
    assert store.deltas.has(deltas.spam.digest)


# Tasks


def test_a_published_delta_is_the_tasks_live_version(store: Store, deltas: Deltas) -> None:
    revision = store.tasks.publish("spam", deltas.spam)
    task = store.tasks.get("spam")
    assert task is not None
    assert (task.name, task.revision, task.aliases) == ("spam", revision, {"live": deltas.spam.digest})
    assert task.versions == (deltas.spam.digest,)


def test_versions_are_listed_oldest_first_and_once(store: Store, deltas: Deltas) -> None:
    for file in (deltas.spam, deltas.spam_3, deltas.spam_2, deltas.spam):
        store.tasks.publish("spam", file)
    task = store.tasks.get("spam")
    assert task is not None
    assert task.versions == (deltas.spam.digest, deltas.spam_3.digest, deltas.spam_2.digest)
    assert task.aliases["live"] == deltas.spam.digest


def test_aliases_move_independently(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2, alias="canary")
    task = store.tasks.get("spam")
    assert task is not None
    assert task.aliases == {"live": deltas.spam.digest, "canary": deltas.spam_2.digest}


def test_every_change_raises_the_revision_by_one(store: Store, deltas: Deltas) -> None:
    revisions = [
        store.events.revision(),
        store.tasks.publish("spam", deltas.spam),
        store.tasks.publish("spam", deltas.spam_2),
        store.tasks.promote("spam", deltas.spam.digest),
        store.tasks.rollback("spam"),
        store.tasks.delete("spam", force=True),
        store.tasks.publish("spam", deltas.spam),
    ]
    assert revisions == list(range(7))
    assert store.events.revision() == 6


def test_promote_points_an_alias_at_an_older_version(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2)
    store.tasks.promote("spam", deltas.spam.digest)
    assert live(store) == deltas.spam.digest


def live(store: Store, task: str = "spam") -> str:
    found = store.tasks.get(task)
    assert found is not None
    return found.aliases["live"]


def test_promote_refuses_a_delta_that_is_another_tasks(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    with pytest.raises(UnknownTaskError, match="no version of task 'spam'"):
        store.tasks.promote("spam", deltas.topic.digest)
    assert live(store) == deltas.spam.digest


def test_promote_refuses_a_delta_the_store_does_not_hold(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    with pytest.raises(UnknownTaskError, match="publish it first"):
        store.tasks.promote("spam", NOWHERE)


def test_rollback_undoes_changes_one_by_one_until_none_is_left(store: Store, deltas: Deltas) -> None:
    for file in (deltas.spam, deltas.spam_2, deltas.spam_3):
        store.tasks.publish("spam", file)
    store.tasks.rollback("spam")
    assert live(store) == deltas.spam_2.digest
    store.tasks.rollback("spam")
    assert live(store) == deltas.spam.digest
    with pytest.raises(ConflictError, match="no earlier version"):
        store.tasks.rollback("spam")
    assert live(store) == deltas.spam.digest


def test_publishing_the_live_version_again_leaves_nothing_to_roll_back_to(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam)
    with pytest.raises(ConflictError):
        store.tasks.rollback("spam")


def test_rollback_of_one_alias_leaves_the_others(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam, alias="canary")
    store.tasks.publish("spam", deltas.spam_2, alias="canary")
    store.tasks.publish("spam", deltas.spam_3)
    store.tasks.rollback("spam", alias="canary")
    task = store.tasks.get("spam")
    assert task is not None
    assert task.aliases == {"live": deltas.spam_3.digest, "canary": deltas.spam.digest}


def test_a_deleted_task_is_gone_from_the_table(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    store.tasks.delete("spam", force=True)
    assert store.tasks.get("spam") is None
    assert list(store.tasks.table().tasks) == ["topic"]


def test_a_task_published_again_does_not_remember_what_was_before_its_deletion(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2)
    store.tasks.delete("spam", force=True)
    store.tasks.publish("spam", deltas.spam_2)
    task = store.tasks.get("spam")
    assert task is not None
    assert task.versions == (deltas.spam_2.digest,)
    with pytest.raises(ConflictError):
        store.tasks.rollback("spam")


@pytest.mark.parametrize("change", ["promote", "rollback", "delete"])
def test_changes_to_an_unknown_task_are_refused_and_not_counted(change: str, store: Store, deltas: Deltas) -> None:
    store.deltas.put(deltas.spam)
    arguments = (deltas.spam.digest,) if change == "promote" else ()
    with pytest.raises(UnknownTaskError, match="no task 'nobody'"):
        getattr(store.tasks, change)("nobody", *arguments)
    assert store.events.revision() == 0


def test_rollback_of_an_unknown_alias_is_refused(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    with pytest.raises(UnknownTaskError, match="no alias 'canary'"):
        store.tasks.rollback("spam", alias="canary")


def test_the_table_holds_every_task_at_the_stores_revision(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    store.tasks.publish("spam", deltas.spam_2)
    table = store.tasks.table()
    assert table.revision == store.events.revision()
    assert table.tasks == {name: store.tasks.get(name) for name in ("spam", "topic")}


def test_an_empty_store_has_an_empty_table(store: Store) -> None:
    assert store.tasks.table().tasks == {}
    assert store.tasks.table().revision == 0


def test_history_tells_newest_first_who_changed_what(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam, who="ada")
    store.tasks.publish("spam", deltas.spam_2, who="bob")
    store.tasks.rollback("spam", who="eve")
    told = store.history.of("spam")
    assert [(h["action"], h["who"], h["revision"]) for h in told] == [
        ("rollback", "eve", 3),
        ("publish", "bob", 2),
        ("publish", "ada", 1),
    ]
    assert (told[0]["previous"], told[0]["digest"]) == (deltas.spam_2.digest, deltas.spam.digest)
    assert len(store.history.of("spam", count=2)) == 2


def test_history_outlives_the_task(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.delete("spam", who="ada", force=True)
    assert [h["action"] for h in store.history.of("spam")] == ["delete", "publish"]


def test_a_change_names_user_and_host_when_nobody_is_named(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    user, _, host = store.history.of("spam")[0]["who"].partition("@")
    assert user
    assert host


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "a/b", "a:b", "a@b", "a{b}", "ä", "a\n", "a*", "@revision", "x" * 129]
)
def test_names_that_do_not_fit_a_key_and_a_url_are_refused(name: str, store: Store, deltas: Deltas) -> None:
    for change in (
        lambda: store.tasks.publish(name, deltas.spam),
        lambda: store.tasks.publish("spam", deltas.spam, alias=name),
        lambda: store.tasks.promote(name, deltas.spam.digest),
        lambda: store.tasks.promote("spam", deltas.spam.digest, alias=name),
        lambda: store.tasks.rollback(name),
        lambda: store.tasks.delete(name, force=True),
        lambda: store.tasks.publish_digest(name, deltas.spam.digest),
        lambda: store.tasks.publish_digest("spam", deltas.spam.digest, alias=name),
        lambda: store.tasks.set_route(name, None),
        lambda: store.tasks.rollback_route(name),
    ):
        with pytest.raises(InvalidInputError, match="is not usable"):
            change()
    assert store.events.revision() == 0
    assert not store.deltas.has(deltas.spam.digest)


@pytest.mark.parametrize("name", ["a", "7", "A.b_c-d", "x" * 128])
def test_names_of_letters_digits_and_a_few_marks_are_taken(name: str, store: Store, deltas: Deltas) -> None:
    store.tasks.publish(name, deltas.spam, alias=name)
    assert store.tasks.table().tasks[name].aliases == {name: deltas.spam.digest}


@pytest.mark.parametrize("digest", ["", "latest", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "../" + "a" * 61])
def test_what_is_no_digest_is_refused(digest: str, store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    with pytest.raises(InvalidInputError, match="is no digest"):
        store.tasks.publish_digest("spam", digest)
    with pytest.raises(UnknownTaskError, match="task 'spam'"):
        store.tasks.promote("spam", digest)


def test_a_digest_is_no_name_of_an_alias(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    for change in (
        lambda: store.tasks.publish("spam", deltas.spam_2, deltas.spam.digest),
        lambda: store.tasks.publish_digest("spam", deltas.spam.digest, "f" * 64),
        lambda: store.tasks.promote("spam", deltas.spam.digest, "f" * 64),
    ):
        with pytest.raises(InvalidInputError, match="64 hexadecimal digits name a version"):
            change()
    assert store.events.revision() == 1


# Versions by how their digests begin


def test_a_version_is_promoted_routed_and_deleted_by_its_first_twelve_digits_and_the_whole_is_kept(
    store: Store, deltas: Deltas
) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2, "canary")
    short, other = deltas.spam.digest[:12], deltas.spam_2.digest[:12]
    store.tasks.promote("spam", other)
    store.tasks.set_route("spam", Route({short: 1, "canary": 2}, shadow=other))
    assert live(store) == deltas.spam_2.digest
    assert store.tasks.known("spam").route == Route({deltas.spam.digest: 1, "canary": 2}, shadow=deltas.spam_2.digest)
    store.tasks.set_route("spam", None)
    store.tasks.delete_version("spam", short)
    assert store.tasks.known("spam").versions == (deltas.spam_2.digest,)
    told = store.history.of("spam", 4)
    assert [(h["action"], h["digest"]) for h in told if h["digest"]] == [
        ("delete-version", deltas.spam.digest),
        ("promote", deltas.spam_2.digest),
    ]
    assert told[2]["route"] == {deltas.spam.digest: 1, "canary": 2}


def test_an_alias_names_the_version_to_promote_or_to_delete(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2, "canary")
    store.tasks.promote("spam", "canary")
    assert live(store) == deltas.spam_2.digest
    store.tasks.promote("spam", deltas.spam.digest)
    with pytest.raises(ConflictError, match=f"version {deltas.spam_2.digest} .* in use by alias 'canary'"):
        store.tasks.delete_version("spam", "canary")
    store.tasks.delete_version("spam", "canary", force=True)
    assert store.tasks.known("spam").versions == (deltas.spam.digest,)


def test_what_others_published_is_told_apart_from_nothing_by_no_answer(store: Store, deltas: Deltas) -> None:
    """A key that may change `spam` must not learn which deltas of other tasks the store holds."""
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    foreign, unknown = deltas.topic.digest, "f" * 64
    for change in (
        lambda digest: store.tasks.promote("spam", digest),
        lambda digest: store.tasks.promote("spam", digest[:12]),
        lambda digest: store.tasks.delete_version("spam", digest),
        lambda digest: store.tasks.set_route("spam", Route({digest: 1})),
        lambda digest: store.tasks.set_route("spam", Route({digest[:12]: 1}, shadow=digest)),
    ):
        with pytest.raises(UnknownTaskError) as of_others:
            change(foreign)
        with pytest.raises(UnknownTaskError) as of_nobody:
            change(unknown)
        told = str(of_others.value).replace(foreign, unknown).replace(foreign[:12], unknown[:12])
        assert told == str(of_nobody.value)


# Events and replicas


def test_events_tell_task_and_revision_in_order(store: Store, deltas: Deltas) -> None:
    start = store.events.last_id()
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("topic", deltas.topic)
    events = store.events.after(start, 0.1)
    assert [(e.task, e.revision) for e in events] == [("spam", 1), ("topic", 2)]
    assert store.events.last_id() == events[-1].id
    assert [e.task for e in store.events.after(events[0].id, 0.1)] == ["topic"]


def test_no_events_come_when_nothing_changed(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    assert store.events.after(store.events.last_id(), 0.05) == []


# A store that does not answer


SECRET = "hunter2-s3cret"
SIGNATURE = Signature(key="A" * 43 + "=", signature="A" * 86 + "==")


@pytest.fixture(scope="module")
def unreachable() -> Store:
    return Store(f"redis://ada:{SECRET}@127.0.0.1:1/0", timeout=0.2)


def every_call(store: Store, file: DeltaFile, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "connection.ping": store.connection.ping,
        "deltas.put": lambda: store.deltas.put(file),
        "deltas.has": lambda: store.deltas.has(file.digest),
        "deltas.fetch": lambda: store.deltas.fetch(file.digest, folder / "fetched"),
        "deltas.copy": lambda: store.deltas.copy(file.digest, io.BytesIO()),
        "deltas.manifest": lambda: store.deltas.manifest(file.digest),
        "deltas.size": lambda: store.deltas.size(file.digest),
        "deltas.stored_bytes": lambda: store.deltas.stored_bytes(file.digest),
        "deltas.extent": lambda: store.deltas.extent(file.digest),
        "deltas.delete": lambda: store.deltas.delete(file.digest),
        "signatures.of": lambda: store.signatures.of(file.digest),
        "signatures.add": lambda: store.signatures.add(file.digest, [SIGNATURE]),
        "leases.shared": lambda: store.leases.shared(file.digest).__enter__(),
        "leases.alone": lambda: store.leases.alone(file.digest).__enter__(),
        "leases.hold_for_upload": lambda: store.leases.hold_for_upload(file.digest),
        "leases.end_of_uploads": lambda: store.leases.end_of_uploads(file.digest),
        "uploads.put_chunk": lambda: store.uploads.put_chunk(file.digest, 0, b"data"),
        "uploads.progress": lambda: store.uploads.progress(file.digest),
        "uploads.commit": lambda: store.uploads.commit(file.digest, deltafile.open_file, folder),
        "uploads.stored_bytes": lambda: store.uploads.stored_bytes(file.digest),
        "uploads.drop": lambda: store.uploads.drop(file.digest),
        "own_uploads.put_chunk": lambda: store.own_uploads.put_chunk("me", file.digest, 0, b"data"),
        "own_uploads.progress": lambda: store.own_uploads.progress("me", file.digest),
        "own_uploads.commit": lambda: store.own_uploads.commit("me", file.digest, deltafile.open_file, folder),
        "tasks.publish": lambda: store.tasks.publish("spam", file),
        "tasks.publish_digest": lambda: store.tasks.publish_digest("spam", file.digest),
        "tasks.promote": lambda: store.tasks.promote("spam", file.digest),
        "tasks.rollback": lambda: store.tasks.rollback("spam"),
        "tasks.set_route": lambda: store.tasks.set_route("spam", None),
        "tasks.rollback_route": lambda: store.tasks.rollback_route("spam"),
        "tasks.delete": lambda: store.tasks.delete("spam"),
        "tasks.delete_version": lambda: store.tasks.delete_version("spam", file.digest),
        "tasks.get": lambda: store.tasks.get("spam"),
        "tasks.known": lambda: store.tasks.known("spam"),
        "tasks.table": store.tasks.table,
        "tasks.versions": store.tasks.versions,
        "keys.all": store.keys.all,
        "keys.locked": store.keys.locked,
        "keys.lock": store.keys.lock,
        "keys.put": lambda: store.keys.put("one", {}),
        "keys.drop": lambda: store.keys.drop("one"),
        "history.of": lambda: store.history.of("spam"),
        "history.at": lambda: store.history.at("spam", 1),
        "adoptions.add": store.adoptions.add,
        "events.revision": store.events.revision,
        "events.is_at": lambda: store.events.is_at(1, "mark"),
        "events.marks": lambda: store.events.marks([1]),
        "events.after": lambda: store.events.after("0", 0.01),
        "events.since": lambda: store.events.since("0-0"),
        "swaps.add": lambda: store.swaps.add("server-0", [], 1),
        "swaps.after": lambda: store.swaps.after("0-0"),
        "swaps.last_id": lambda: store.swaps.last_id(),
        "events.last_id": store.events.last_id,
        "placements.clear": lambda: store.placements.clear("one"),
        "placements.epoch": store.placements.epoch,
        "placements.lead": lambda: store.placements.lead("one", 10.0),
        "placements.loads": store.placements.loads,
        "placements.present": store.placements.present,
        "placements.proxies": store.placements.proxies,
        "placements.read": store.placements.read,
        "placements.remove": lambda: store.placements.remove("one"),
        "placements.report": lambda: store.placements.report("one", Load()),
        "placements.report_proxy": lambda: store.placements.report_proxy("one", 1),
        "placements.retire": lambda: store.placements.retire("one"),
        "placements.write": lambda: store.placements.write(Placement(1), "one"),
        "replicas.report": lambda: store.replicas.report("one", 1),
        "replicas.retire": lambda: store.replicas.retire("one"),
        "replicas.retire_dead": store.replicas.retire_dead,
        "replicas.reports": store.replicas.reports,
        "replicas.is_elsewhere": lambda: store.replicas.is_elsewhere("replica"),
        "replicas.spread": lambda: store.replicas.spread(1),
        "replicas.wait": lambda: store.replicas.wait(1, 0.0),
        "garbage.collect": store.garbage.collect,
    }


def methods(store: Store) -> set[str]:
    """Of every part; the connection, which the parts share, has a test of its own."""
    parts = {name: part for name, part in vars(store).items() if name != "connection"}
    return {f"{name}.{method}" for name, part in parts.items() for method in vars(type(part)) if method[0] != "_"}


def test_every_method_says_which_store_does_not_answer_and_keeps_the_password_to_itself(
    unreachable: Store, deltas: Deltas, tmp_path: Path
) -> None:
    calls = every_call(unreachable, deltas.spam, tmp_path)
    assert set(calls) == methods(unreachable) | {"connection.ping"}
    with ThreadPoolExecutor(len(calls)) as pool:
        errors = dict(zip(calls, pool.map(lambda call: raised(call), calls.values()), strict=True))
    for name, error in errors.items():
        assert isinstance(error, StoreError), name
        assert "redis://127.0.0.1:1/0 does not answer" in str(error), name
        assert SECRET not in str(error), name


def raised(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def test_an_unreachable_store_is_answered_with_503_and_when_to_retry(unreachable: Store) -> None:
    error = raised(unreachable.connection.ping)
    assert isinstance(error, StoreError)
    assert (error.status, error.retry_after) == (503, 1.0)


@pytest.fixture
def locked_url(private_url: str) -> Iterator[str]:
    client = connect(private_url)
    client.config_set("requirepass", SECRET)
    yield private_url
    connect(private_url.replace("unix://", f"unix://:{SECRET}@")).config_set("requirepass", "")


def test_a_wrong_password_is_refused_without_being_repeated(locked_url: str) -> None:
    wrong = "not-the-password"
    store = Store(locked_url.replace("unix://", f"unix://:{wrong}@"))
    error = raised(store.connection.ping)
    assert isinstance(error, StoreError)
    assert "refuses these credentials" in str(error)
    assert wrong not in str(error)


def test_no_password_where_one_is_needed_is_a_store_error(locked_url: str) -> None:
    with pytest.raises(StoreError, match="refuses these credentials"):
        Store(locked_url).tasks.table()


def test_the_right_password_opens_the_store(locked_url: str) -> None:
    Store(locked_url.replace("unix://", f"unix://:{SECRET}@")).connection.ping()


def test_an_acl_user_without_the_right_to_write_is_told_so(private_url: str, deltas: Deltas) -> None:
    admin = connect(private_url)
    admin.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@read", "+@connection"])
    reader = Store(private_url.replace("unix://", "unix://reader:pw@"))
    assert reader.tasks.table().tasks == {}
    with pytest.raises(StoreError, match="refuses these credentials"):
        reader.tasks.publish("spam", deltas.spam)


def test_a_server_that_evicts_when_full_is_warned_about(private_url: str) -> None:
    client, store = connect(private_url), Store(private_url)
    assert store.connection.warnings() == []
    client.config_set("maxmemory", "200mb")
    assert store.connection.warnings() == []
    client.config_set("maxmemory-policy", "allkeys-lru")
    (warning,) = store.connection.warnings()
    assert "allkeys-lru" in warning
    client.config_set("maxmemory", "0")
    assert store.connection.warnings() == []


def test_a_file_changed_since_it_was_opened_does_not_become_a_delta(
    store: Store, deltas: Deltas, tmp_path: Path
) -> None:
    path = tmp_path / "spam.ken"
    path.write_bytes(deltas.spam.path.read_bytes())
    opened = DeltaFile(path, deltas.spam.manifest, deltas.spam.size, hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_bytes(deltas.topic.path.read_bytes())
    with pytest.raises(KenError):
        store.tasks.publish("spam", opened)
    assert store.tasks.get("spam") is None

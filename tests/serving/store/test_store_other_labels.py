"""Versions whose answers have another form than callers get now: refused unless allowed, however they would come."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from ken_core import DeltaFile
from serving.errors import ConflictError, OtherLabelsError, UnknownTaskError
from serving.routing.routes import Route
from serving.store import Store, Task
from serving.store.urls import connect
from tests.tiny_checkpoints import Deltas, Tiny

FORK = multiprocessing.get_context("fork")
"""The children touch no torch, only Redis."""
OTHER = "labels: only in .*: 'ham', 'spam'; only in .*: 'anger', 'fear', 'joy'"


@pytest.fixture
def spam(store: Store, deltas: Deltas) -> Store:
    """A task with a live version; the store also holds deltas of other labels and of the same."""
    store.tasks.publish("spam", deltas.spam)
    for file in (deltas.emotion, deltas.spam_2):
        store.deltas.put(file)
    return store


@pytest.fixture
def mixed(spam: Store, deltas: Deltas) -> Store:
    """The same with a canary of other labels, which was allowed."""
    spam.tasks.publish("spam", deltas.emotion, "canary", allow_other_labels=True)
    return spam


def found(store: Store, task: str = "spam") -> Task:
    known = store.tasks.get(task)
    assert known is not None
    return known


# What is refused


@pytest.mark.parametrize("alias", ["live", "canary"])
@pytest.mark.parametrize("how", ["publish", "publish_digest"])
def test_publishing_other_labels_beside_a_live_version_is_refused(
    how: str, alias: str, spam: Store, deltas: Deltas
) -> None:
    what = deltas.emotion if how == "publish" else deltas.emotion.digest
    before = found(spam)
    with pytest.raises(OtherLabelsError, match=f"task 'spam' .* {OTHER}"):
        getattr(spam.tasks, how)("spam", what, alias)
    assert found(spam) == before
    assert spam.events.revision() == before.revision
    getattr(spam.tasks, how)("spam", what, alias, allow_other_labels=True)
    assert found(spam).aliases[alias] == deltas.emotion.digest


def test_a_refused_delta_is_not_even_sent(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    with pytest.raises(OtherLabelsError):
        store.tasks.publish("spam", deltas.topic)
    assert not store.deltas.has(deltas.topic.digest)


@pytest.mark.parametrize("alias", ["live", "next"])
def test_promoting_other_labels_is_refused(alias: str, mixed: Store, deltas: Deltas) -> None:
    before = found(mixed)
    with pytest.raises(OtherLabelsError, match=OTHER):
        mixed.tasks.promote("spam", deltas.emotion.digest, alias)
    assert found(mixed) == before
    mixed.tasks.promote("spam", deltas.emotion.digest, alias, allow_other_labels=True)
    assert found(mixed).aliases[alias] == deltas.emotion.digest


@pytest.mark.parametrize(
    "route", [Route({"live": 9, "canary": 1}), Route({"canary": 1}), Route({"live": 1}, shadow="canary")]
)
def test_routing_requests_or_copies_of_them_to_other_labels_is_refused(
    route: Route, mixed: Store, deltas: Deltas
) -> None:
    digest = deltas.emotion.digest
    by_digest = Route(
        {digest if t == "canary" else t: w for t, w in route.weights.items()}, digest if route.shadow else None
    )
    for one in (route, by_digest):
        with pytest.raises(OtherLabelsError, match=OTHER):
            mixed.tasks.set_route("spam", one)
        assert found(mixed).route is None
        mixed.tasks.set_route("spam", one, allow_other_labels=True)
        assert found(mixed).route == one
        mixed.tasks.rollback_route("spam")


def test_every_target_that_differs_is_named(mixed: Store, deltas: Deltas) -> None:
    mixed.tasks.publish("spam", deltas.topic, "next", allow_other_labels=True)
    with pytest.raises(OtherLabelsError, match=r"only in 'canary': 'anger'.*only in 'next': 'art', 'food'"):
        mixed.tasks.set_route("spam", Route({"live": 1, "canary": 2, "next": 1}))


def test_another_kind_of_answer_is_refused(store: Store, of_every_kind: dict[str, DeltaFile]) -> None:
    kinds = {"spam": "text-classification", "tags": "token-classification", "answers": "question-answering",
             "vectors": "feature-extraction", "search": "sentence-embeddings"}  # fmt: skip
    for live, other in itertools.permutations(kinds, 2):
        store.tasks.publish(f"{live}-{other}", of_every_kind[live])
        with pytest.raises(OtherLabelsError, match=f"kind: {kinds[live]} in the live version, {kinds[other]} in"):
            store.tasks.publish(f"{live}-{other}", of_every_kind[other])


def test_scores_that_no_longer_add_up_to_one_are_refused(store: Store, tiny: Tiny, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.spam)
    each_by_itself = tiny.delta(tiny.tuned("spam-multi", ["ham", "spam"], 83, "multi_label_classification"))
    with pytest.raises(OtherLabelsError, match="scores: softmax in the live version, sigmoid in version"):
        store.tasks.publish("spam", each_by_itself, "canary")


# What they are compared with


def test_a_task_without_versions_takes_any(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("spam", deltas.emotion)
    assert found(store).aliases == {"live": deltas.emotion.digest}


def test_what_answers_as_the_live_version_does_is_taken_though_a_canary_differs(mixed: Store, deltas: Deltas) -> None:
    mixed.tasks.promote("spam", deltas.spam.digest, "canary")
    mixed.tasks.publish_digest("spam", deltas.spam_2.digest)
    mixed.tasks.set_route("spam", Route({"live": 1, "canary": 1, deltas.spam.digest: 1}, shadow="canary"))


def test_without_a_live_version_an_alias_is_compared_with_what_it_points_at(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("early", deltas.spam, "beta")
    with pytest.raises(OtherLabelsError, match=r"only in the version that 'beta' is now: 'ham', 'spam'"):
        store.tasks.publish("early", deltas.emotion, "beta")
    store.tasks.publish("early", deltas.emotion, "gamma")  # nobody is answered by it, or was


def test_without_a_live_version_targets_of_a_route_are_compared_with_each_other(store: Store, deltas: Deltas) -> None:
    store.tasks.publish("early", deltas.spam, "beta")
    store.tasks.publish("early", deltas.emotion, "gamma")
    with pytest.raises(OtherLabelsError, match=r"only in 'gamma': .*; only in 'beta'"):
        store.tasks.set_route("early", Route({"beta": 1, "gamma": 9}))
    store.tasks.set_route("early", Route({"beta": 1}))
    with pytest.raises(OtherLabelsError, match=r"only in 'beta': 'ham', 'spam'; only in 'gamma'"):
        store.tasks.set_route("early", Route({"gamma": 1}))  # its callers are answered by beta now
    with pytest.raises(OtherLabelsError, match=r"only in 'beta': 'ham', 'spam'; only in version"):
        store.tasks.publish("early", deltas.emotion)
    store.tasks.publish("early", deltas.spam_2)


def test_a_target_or_a_version_that_is_not_there_is_still_that(mixed: Store, deltas: Deltas) -> None:
    with pytest.raises(UnknownTaskError, match="'nowhere' is neither an alias nor a version"):
        mixed.tasks.set_route("spam", Route({"nowhere": 1}))
    mixed.tasks.publish("other", deltas.topic)
    with pytest.raises(UnknownTaskError, match="no version of task 'spam'"):
        mixed.tasks.promote("spam", deltas.topic.digest)


# The ways out


def test_returning_to_what_was_before_is_never_refused(mixed: Store, deltas: Deltas) -> None:
    mixed.tasks.set_route("spam", Route({"live": 1, "canary": 1}), allow_other_labels=True)
    mixed.tasks.set_route("spam", None)
    mixed.tasks.rollback_route("spam")
    mixed.tasks.promote("spam", deltas.emotion.digest, allow_other_labels=True)
    mixed.tasks.rollback("spam")
    assert found(mixed).aliases["live"] == deltas.spam.digest
    mixed.tasks.promote("spam", deltas.emotion.digest, allow_other_labels=True)
    mixed.tasks.delete_version("spam", deltas.emotion.digest, force=True)
    assert found(mixed).aliases == {"live": deltas.spam.digest}


def test_history_tells_what_was_allowed_and_of_what_needed_it_only(mixed: Store, deltas: Deltas) -> None:
    mixed.tasks.publish("spam", deltas.spam_2, allow_other_labels=True)
    mixed.tasks.set_route("spam", Route({"live": 1, "canary": 1}), allow_other_labels=True)
    mixed.tasks.rollback_route("spam")
    told = {row["action"]: row.get("other_labels") for row in reversed(mixed.history.of("spam"))}
    assert told["route"].startswith("labels: only in the live version: 'ham', 'spam'; only in 'canary': 'anger'")
    assert told["publish"] is told["rollback-route"] is None
    allowed = [row["alias"] for row in mixed.history.of("spam") if row["action"] == "publish" and "other_labels" in row]
    assert allowed == ["canary"]


# Manifests that the store does not have, or has from before


@pytest.fixture
def damage(store_url: str, namespace: str) -> Callable[[str, bytes | None], None]:
    """Replace the stored manifest of a delta, or lose all of it."""
    raw: Any = connect(store_url)

    def run(digest: str, manifest: bytes | None) -> None:
        key = f"ken:{namespace}:delta:{{{digest}}}"
        raw.delete(key) if manifest is None else raw.hset(key, "manifest", manifest)

    return run


@pytest.mark.parametrize("manifest", [None, b"", b"{", b"{}", b"[1]", b"\xff"])
def test_a_live_version_that_cannot_be_compared_is_refused_by_name_until_it_is_published_again(
    manifest: bytes | None, spam: Store, deltas: Deltas, damage: Callable[[str, bytes | None], None]
) -> None:
    damage(deltas.spam.digest, manifest)
    with pytest.raises(ConflictError, match=f"no readable manifest of {deltas.spam.digest}: publish it again"):
        spam.tasks.publish("spam", deltas.spam_2)
    spam.tasks.publish("spam", deltas.spam)
    spam.tasks.publish("spam", deltas.spam_2)
    damage(deltas.spam_2.digest, manifest)
    spam.tasks.publish("spam", deltas.spam, "canary", allow_other_labels=True)
    assert "cannot be compared" in spam.history.of("spam")[0]["other_labels"]


def test_a_manifest_of_the_format_before_is_compared_like_any(
    spam: Store, deltas: Deltas, damage: Callable[[str, bytes | None], None]
) -> None:
    plain = deltas.spam.manifest.model_dump(mode="json")
    older = {
        name: value for name, value in plain.items() if name not in ("adapter", "lowrank", "embedding", "projections")
    }
    damage(deltas.spam.digest, orjson.dumps({**older, "format": 2}))
    spam.tasks.publish("spam", deltas.spam_2, "canary")
    with pytest.raises(OtherLabelsError, match=OTHER):
        spam.tasks.publish("spam", deltas.emotion)


# Changes at once


def test_what_was_compared_is_what_was_live_when_the_change_happened(
    mixed: Store, store_url: str, namespace: str, deltas: Deltas
) -> None:
    """Live goes back and forth between labels, while another process may point an alias only at live's own."""
    taken, refused = FORK.Value("i", 0), FORK.Value("i", 0)
    done = FORK.Event()

    def follow() -> None:
        own = Store(store_url, namespace)
        while not done.is_set():
            for digest in (deltas.spam.digest, deltas.emotion.digest):
                try:
                    own.tasks.promote("spam", digest, "follower")
                    taken.value += 1
                except OtherLabelsError:
                    refused.value += 1

    def followed() -> list[tuple[str, str]]:
        """What the follower was pointed at, beside what was live then, as far back as the history goes."""
        live, pairs = None, []
        for row in reversed(mixed.history.of("spam", 1000)):
            if row["alias"] == "live":
                live = row["digest"]
            elif row["alias"] == "follower" and live is not None:
                pairs.append((row["digest"], live))
        return pairs

    child = FORK.Process(target=follow)
    child.start()
    pairs: list[tuple[str, str]] = []
    try:
        turns = itertools.cycle([deltas.emotion.digest, deltas.spam.digest])
        for _ in range(100):  # rounds, as many as it takes for either to have happened often enough
            for _ in range(200):
                mixed.tasks.promote("spam", next(turns), allow_other_labels=True)
            pairs += followed()
            if len(pairs) > 20 and min(taken.value, refused.value) > 20:
                break
    finally:
        done.set()
        child.join(60)
    assert child.exitcode == 0
    assert taken.value > 20
    assert refused.value > 20
    assert len(pairs) > 20
    assert all(digest == live for digest, live in pairs)


def test_of_two_first_versions_at_once_the_second_is_compared_with_the_first(
    store: Store, store_url: str, namespace: str, deltas: Deltas
) -> None:
    files = (deltas.spam, deltas.emotion)
    for file in files:
        store.deltas.put(file)
    ready, outcomes = FORK.Barrier(2), FORK.SimpleQueue()

    def publisher(digest: str) -> Callable[[], None]:
        def work() -> None:
            own = Store(store_url, namespace)
            for i in range(40):
                ready.wait(20)
                try:
                    own.tasks.publish_digest(f"task-{i}", digest)
                    outcomes.put((i, "taken"))
                except OtherLabelsError:
                    outcomes.put((i, "refused"))

        return work

    children = [FORK.Process(target=publisher(file.digest)) for file in files]
    for child in children:
        child.start()
    told = [outcomes.get() for _ in range(80)]
    for child in children:
        child.join(60)
    assert sorted(told) == sorted((i, outcome) for i in range(40) for outcome in ("taken", "refused"))
    assert all(len(task.versions) == 1 for task in store.tasks.table().tasks.values())

"""`GET /v1/tasks/{task}/kept` and `GET /v1/overlap`: what deltas keep, and what they keep together."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from math import prod

import httpx
import numpy as np
import pytest
from over_http import Served, served
from problems import is_problem

from ken_core import Budget, DeltaFile, Selection, deltafile, extract, open_tuned
from ken_core.bits import unpack_mask
from serving.config import load_settings
from serving.pipelines import PIPELINES, kinds_for
from serving.replica import overlaps
from serving.service import Service
from serving.store import Store
from tests.tiny_checkpoints import Deltas, Tiny


@pytest.fixture(scope="module")
def comparing(
    tiny: Tiny, deltas: Deltas, embedded_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with two tasks that keep positions, and one that keeps a shift of low rank."""
    namespace = f"kept-{uuid.uuid4().hex[:12]}"
    store = Store(embedded_url, namespace)
    store.tasks.publish("spam", deltas.spam)
    store.tasks.publish("spam", deltas.spam_2, "canary")
    store.tasks.publish("mood", deltas.emotion)
    store.tasks.publish("thin", shift_of_low_rank(tiny))
    chosen = {"base": str(tiny.base_folder), "data_dir": tmp_path_factory.mktemp("kept"), "namespace": namespace}
    service = Service(load_settings(**chosen, threads=1), embedded_url)
    service.start()
    with served(service) as found:
        yield found
    service.stop()


def shift_of_low_rank(tiny: Tiny) -> DeltaFile:
    tuned = tiny.tuned("kept-thin", ["ham", "spam"], 91)
    selection = Selection(method="svd", budget=Budget(energy=0.5))
    return deltafile.write(extract(tiny.base, open_tuned(str(tuned)), selection), tiny.base, tuned.with_suffix(".ken"))


def masks_of(file: DeltaFile) -> dict[str, np.ndarray]:
    entries = file.manifest.sparse
    read = deltafile.read_masks(file, entries)
    return {name: unpack_mask(mask, prod(entries[name].shape)) for name, mask in zip(entries, read, strict=True)}


def test_it_tells_what_is_kept_of_every_tensor(comparing: Served, deltas: Deltas) -> None:
    found = comparing.get("/v1/tasks/spam/kept").json()
    manifest = deltas.spam.manifest
    told = {name: found[name] for name in ("task", "digest", "kind", "kinds", "labels", "bytes", "unit", "method")}
    assert told == {
        "task": "spam",
        "digest": deltas.spam.digest,
        "kind": "text-classification",
        "kinds": ["text-classification"],
        "labels": ["ham", "spam"],
        "bytes": deltas.spam.size,
        "unit": "positions",
        "method": manifest.method,
    }
    tensors = comparing.service.resident.checkpoint.backbone_tensors
    assert len(found["layers"]) == len(tensors)
    assert sum(row["kept"] for row in found["layers"]) == manifest.stored > 0
    assert sum(row["of"] for row in found["layers"]) == sum(tensor.numel() for tensor in tensors.values())
    assert {row["layer"] for row in found["layers"]} >= {None, 0, 1}
    assert all(row["share"] == row["kept"] / row["of"] for row in found["layers"])
    named = {(row["layer"], row["module"]) for row in found["layers"]}
    assert len(named) == len(found["layers"])


def test_a_version_can_be_named_and_another_is_unknown(comparing: Served, deltas: Deltas) -> None:
    canary = deltas.spam_2.digest
    for version in ("canary", canary, canary[:12]):
        assert comparing.get(f"/v1/tasks/spam/kept?version={version}").json()["digest"] == canary
    assert is_problem(comparing.get("/v1/tasks/spam/kept?version=nothing"), 404)
    assert is_problem(comparing.get("/v1/tasks/nothing/kept"), 404)


def test_a_shift_of_low_rank_is_told_by_its_rank(comparing: Served) -> None:
    found = comparing.get("/v1/tasks/thin/kept").json()
    assert found["unit"] == "rank"
    ranks = [row for row in found["layers"] if row["unit"] == "rank"]
    assert ranks
    assert all(0 < row["kept"] < row["of"] for row in ranks)
    assert all(0 < row["share"] < 1 and row["bytes"] > 0 for row in ranks)


def test_overlaps_are_those_of_the_masks(comparing: Served, deltas: Deltas) -> None:
    found = comparing.get("/v1/overlap?tasks=spam,thin,mood,spam").json()
    assert found["tasks"] == ["spam", "mood"]
    assert list(found["left_out"]) == ["thin"]
    assert "svd" in found["left_out"]["thin"]
    ours, theirs = masks_of(deltas.spam), masks_of(deltas.emotion)
    both = sum(int((ours[name] & theirs[name]).sum()) for name in ours.keys() & theirs.keys())
    by_chance = sum(
        float(ours[name].sum()) * float(theirs[name].sum()) / ours[name].size for name in ours.keys() & theirs.keys()
    )
    all_kept = sum(int(mask.sum()) for mask in [*ours.values(), *theirs.values()])
    expected, chance = both / (all_kept - both), by_chance / (all_kept - by_chance)
    assert expected > 0
    assert found["shared"] == [[1.0, pytest.approx(expected)], [pytest.approx(expected), 1.0]]
    assert found["by_chance"] == [[1.0, pytest.approx(chance)], [pytest.approx(chance), 1.0]]


def test_what_was_counted_is_not_counted_again(comparing: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    first = comparing.get("/v1/overlap?tasks=spam,mood").json()
    monkeypatch.setattr(overlaps, "overlaps_of", lambda *_: pytest.fail("it was counted again"))
    assert comparing.get("/v1/overlap?tasks=spam,mood").json() == first


@pytest.mark.parametrize("tasks", ["spam", "spam,spam", ",".join(f"t{i}" for i in range(33))])
def test_only_so_many_can_be_compared(tasks: str, comparing: Served) -> None:
    assert is_problem(comparing.get(f"/v1/overlap?tasks={tasks}"), 422)


def test_tasks_that_do_not_exist_or_are_not_the_keys_are_unknown(
    comparing: Served, pair: tuple[Served, Served], key_of: Callable[..., tuple[str, str]]
) -> None:
    assert is_problem(comparing.get("/v1/overlap?tasks=spam,nothing"), 404)
    assert is_problem(comparing.get("/v1/overlap?tasks=spam,"), 404)
    _, token = key_of("predict", tasks=["mood*"])
    for path in ("/v1/overlap?tasks=mood,spam", "/v1/tasks/spam/kept"):
        refused = httpx.get(f"{pair[0].url}{path}", headers={"X-Api-Key": token})
        assert is_problem(refused, 404)
        assert "mood*" in refused.json()["detail"]


def test_while_too_many_wait_for_an_answer_others_are_told_to_come_back(
    comparing: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlaps, "_MOST_WAITING", 0)
    refused = comparing.get("/v1/overlap?tasks=spam,mood")
    assert is_problem(refused, 429)
    assert int(refused.headers["retry-after"]) > 0


def test_kinds_are_those_that_are_answered(of_every_kind: dict[str, DeltaFile], peers: Served) -> None:
    """What is offered is answered, and what is not offered is refused."""
    inputs = {
        "question-answering": {"question": "who?", "context": "Ann was there"},
        "rerank": {"query": "rain", "texts": ["it rains"]},
    }
    for task, file in of_every_kind.items():
        offered = kinds_for(file.manifest)
        by_itself = peers.post(f"/v1/tasks/{task}/predict", json={"inputs": inputs.get(offered[0], "it rains")})
        assert by_itself.json()["kind"] == offered[0]
        for kind in PIPELINES:
            if PIPELINES[kind].head != file.manifest.kind:
                assert kind not in offered
                continue
            parameters = {"candidate_labels": ["sun", "rain"]} if kind == "zero-shot-classification" else {}
            body = {"inputs": inputs.get(kind, "it rains"), "kind": kind, "parameters": parameters}
            answered = peers.post(f"/v1/tasks/{task}/predict", json=body)
            assert (answered.status_code == 200) == (kind in offered), (task, kind, answered.text)

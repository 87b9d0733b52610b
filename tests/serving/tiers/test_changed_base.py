"""The base's file written to under a running server: what is loaded stays right, and nothing else is answered."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ken_core import DeltaFile
from serving.service import Service
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores

Client = httpx.AsyncClient
Talk = Callable[..., Any]
Metric = Callable[..., float]


@pytest.fixture
def weights(tiny: Tiny, tmp_path: Path) -> Path:
    """The base's file of weights, of this test's own."""
    return Path(shutil.copytree(tiny.base_folder, tmp_path / "own-base")) / "model.safetensors"


@pytest.fixture
def service(
    weights: Path, make_service: Callable[..., Service], publish: Callable[..., None], deltas: Deltas
) -> Service:
    publish("spam", deltas.spam)
    publish("topic", deltas.topic)
    service = make_service(base=str(weights.parent), verify_seconds=3600.0)
    assert ask(service, deltas.spam).size
    return service


def ask(service: Service, file: DeltaFile) -> np.ndarray:
    """Scores in the order of the labels, shape (texts, labels)."""
    outputs = asyncio.run(service.predict(file.digest, TEXTS, {}, 20)).outputs
    return np.array([[score for _, score in sorted(scores(output).items())] for output in outputs])


def are_same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Which texts share a batch, and whether it mixes tasks, changes the last digits."""
    return bool(np.allclose(found, expected, atol=1e-5, rtol=0))


def write_in_place(weights: Path) -> None:
    """Other values in the same file."""
    other = weights.with_suffix(".other")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, other, {"format": "pt"})
    weights.write_bytes(other.read_bytes())


def test_what_is_loaded_answers_on_and_nothing_more_is_loaded(
    service: Service, weights: Path, deltas: Deltas, talk: Talk, metric: Metric
) -> None:
    async def conversation(client: Client) -> None:
        predict = "/v1/tasks/{}/predict".format
        one = {"inputs": TEXTS[0]}
        before = (await client.post(predict("spam"), json=one)).json()["outputs"]
        assert (await client.get("/v1/base")).json()["trouble"] is None
        assert metric(service, "ken_base_file_changed") == 0
        held = weights.read_bytes()
        write_in_place(weights)

        refused = await client.post(predict("topic"), json={"inputs": TEXTS})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "model.safetensors was written to after it was opened" in refused.json()["detail"]
        assert "rename" in refused.json()["detail"]
        assert refused.json()["title"] == "Base changed"

        after = await client.post(predict("spam"), json=one)
        assert after.json()["outputs"] == before
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert "was written to" in (await client.get("/v1/base")).json()["trouble"]
        assert metric(service, "ken_base_file_changed") == 1
        assert metric(service, "ken_requests_total", code="503") == 1
        found = (await client.post("/v1/base/verify")).json()
        assert found["differing"] == []
        assert set(found["differing_in_file"]) == set(service.resident.fingerprint.tensors)

        weights.write_bytes(held)
        assert (await client.post("/v1/base/verify")).json()["differing_in_file"] == []
        assert (await client.post(predict("topic"), json={"inputs": TEXTS})).status_code == 200
        assert (await client.get("/v1/base")).json()["trouble"] is None
        assert metric(service, "ken_base_file_changed") == 0

    talk(service, conversation)


def test_a_file_that_was_cut_costs_nobody_the_server(
    service: Service, weights: Path, deltas: Deltas, talk: Talk
) -> None:
    before = ask(service, deltas.spam)
    os.truncate(weights, 1000)

    async def conversation(client: Client) -> None:
        refused = await client.post("/v1/tasks/topic/predict", json={"inputs": "rain"})
        assert refused.status_code == 503
        assert "shorter" in refused.json()["detail"]
        found = (await client.post("/v1/base/verify")).json()
        assert found["differing"] == []
        assert found["differing_in_file"]

    talk(service, conversation)
    assert are_same(ask(service, deltas.spam), before)


def test_a_file_that_was_replaced_is_of_no_concern_until_a_restart(
    service: Service, weights: Path, deltas: Deltas, make_service: Callable[..., Service], tmp_path: Path
) -> None:
    expected = ask(make_service(data_dir=tmp_path / "another"), deltas.topic)
    other = weights.with_suffix(".other")
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, other, {"format": "pt"})
    other.replace(weights)
    assert are_same(ask(service, deltas.topic), expected)
    assert service.engine.verify_file() == []


def test_an_upload_is_not_found_unfit_for_what_the_server_lost(
    service: Service, weights: Path, deltas: Deltas, talk: Talk
) -> None:
    write_in_place(weights)

    async def conversation(client: Client) -> None:
        digest = deltas.emotion.digest
        await client.put(f"/v1/uploads/{digest}/0", content=deltas.emotion.path.read_bytes())
        refused = await client.post("/v1/tasks/emotion/versions", json={"digest": digest})
        assert (refused.status_code, refused.json()["title"]) == (503, "Base changed")
        assert (await client.get("/v1/tasks/emotion")).status_code == 404

    talk(service, conversation)


def test_the_idle_check_notices_without_anybody_asking(
    weights: Path, make_service: Callable[..., Service], metric: Metric, eventually: Callable[..., None]
) -> None:
    service = make_service(base=str(weights.parent), verify_seconds=0.05)
    write_in_place(weights)
    eventually(lambda: metric(service, "ken_base_file_changed") == 1)
    service.check()  # it goes on answering, and is not replaced
    assert metric(service, "ken_poisoned") == 0


# What is served lies in memory of the server's own


def mapped(path: Path) -> list[range]:
    """Where a file is mapped in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = [line[0].split("-") for line in lines if line[-1] == str(path)]
    return [range(int(start, 16), int(end, 16)) for start, end in found]


def addresses(*modules: torch.nn.Module) -> Iterable[tuple[str, int]]:
    for module in modules:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            yield name, tensor.data_ptr()


@pytest.mark.parametrize("materialised_bytes", [0, 1 << 30])
def test_no_tensor_that_answers_lies_on_the_mapped_file(
    materialised_bytes: int,
    weights: Path,
    tiny: Tiny,
    make_service: Callable[..., Service],
    publish: Callable[..., None],
    deltas: Deltas,
    eventually: Callable[..., None],
) -> None:
    few = tiny.delta(tiny.tuned("few", ["no", "yes"], seed=91), kept=0.0005)
    assert len(few.manifest.sparse) < len(tiny.base.backbone_tensors)  # some tensors are the base's own
    for task, file in (("few", few), ("spam", deltas.spam)):
        publish(task, file)
    service = make_service(base=str(weights.parent), materialised_bytes=materialised_bytes)
    before = [[ask(service, file) for _ in range(6)][-1] for file in (few, deltas.spam)]
    if materialised_bytes:
        eventually(lambda: all(loaded.attached.materialised for loaded in service.engine.tiers.held()))
    lies = mapped(weights)
    assert lies
    tensors = service.resident.checkpoint.backbone_tensors
    assert any(tensor.data_ptr() in part for tensor in tensors.values() for part in lies)
    models = [loaded.model.whole for loaded in service.engine.tiers.held()]
    assert len(models) == 2
    for name, at in addresses(service.resident.backbone, *models):
        assert not any(at in part for part in lies), name
    write_in_place(weights)
    assert all(are_same(ask(service, file), found) for file, found in zip((few, deltas.spam), before, strict=True))

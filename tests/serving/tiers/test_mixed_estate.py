"""A mixed estate: adapters and full fine-tunes of one base, answered in turns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForSequenceClassification

from ken_core import DeltaFile, deltafile, import_peft
from serving.service import Service
from tests.ken_core.adapters import make_adapter
from tests.tiny_checkpoints import TEXTS, Deltas, Tiny, scores

peft = pytest.importorskip("peft")


@pytest.fixture
def adapters(tiny: Tiny, tmp_path: Path) -> dict[str, DeltaFile]:
    """A LoRA and a SHiRA adapter of the tiny base, imported."""
    configs = {
        "lora": peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "intermediate.dense"]),
        "shira": peft.ShiraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
    }
    files = {}
    for name, config in configs.items():
        folder, seed = tmp_path / name, len(name)
        make_adapter(tiny.base_folder, AutoModelForSequenceClassification, config, folder, seed=seed, num_labels=3)
        delta = import_peft(folder, tiny.base, labels=[f"{name}-{i}" for i in range(3)])
        files[name] = deltafile.write(delta, tiny.base, tmp_path / f"{name}.ken")
    return files


def test_adapters_and_fine_tunes_take_turns_and_each_answers_as_a_server_of_its_own(
    service: Service,
    publish: Callable[..., None],
    talk: Callable[..., Any],
    deltas: Deltas,
    adapters: dict[str, DeltaFile],
    dedicated: Callable[[DeltaFile, str], dict[str, float]],
) -> None:
    files = {"emotion": deltas.emotion, "topic": deltas.topic, **adapters}
    for name, file in adapters.items():
        publish(name, file)

    async def ask(client: httpx.AsyncClient) -> list[tuple[str, str, dict[str, float]]]:
        found = []
        for text in TEXTS:
            for task in files:
                answer = await client.post(f"/v1/tasks/{task}/predict", json={"inputs": text})
                assert answer.status_code == 200, answer.text
                found.append((task, text, scores(answer.json()["outputs"][0])))
        return found

    for task, text, answer in talk(service, ask):
        assert answer == pytest.approx(dedicated(files[task], text), abs=1e-5)

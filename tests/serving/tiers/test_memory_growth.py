"""What many tasks on the device cost a process: what the packed tier says, and nothing beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertForSequenceClassification

from ken_core import Budget, Delta, Selection, deltafile, extract, open_base, wrap

TASKS = 32
KEPT = 0.05


@pytest.fixture
def many(minilm: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of deltas of one random fine-tune's twentieth, each with a head of its own and so a digest."""
    base = open_base(str(minilm))
    torch.manual_seed(11)
    model = BertForSequenceClassification.from_pretrained(minilm, dtype=base.dtype, num_labels=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    delta = extract(base, wrap(model, minilm), Selection("random", Budget(fraction=KEPT)))
    folder = tmp_path / "deltas"
    folder.mkdir()
    for number in range(TASKS):
        file = deltafile.write(_with_head(delta, number), base, folder / "latest", codec="raw")
        file.path.rename(folder / file.digest)
    yield folder
    for path in folder.iterdir():
        path.unlink()


def _with_head(delta: Delta, number: int) -> Delta:
    head = {**delta.head, "classifier.bias": torch.full_like(delta.head["classifier.bias"], float(number))}
    return dataclasses.replace(delta, head=head)


def test_a_process_grows_by_what_the_packed_tasks_take(minilm: Path, many: Path) -> None:
    script = Path(__file__).with_name("growing.py")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(script), str(minilm), str(many)],
        env=os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tasks"] == TASKS
    assert found["base_intact"]
    assert found["packed"] > (TASKS - 4) * KEPT * 4 * 20_000_000  # or the comparison would be one with noise
    assert found["grew"] == pytest.approx(found["packed"], rel=0.25)

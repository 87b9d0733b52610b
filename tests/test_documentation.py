"""What the documentation shows is run."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from tests.ken_core.adapters import make_adapter

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks_of(page: str) -> list[str]:
    return _BLOCK.findall((ROOT / page).read_text())


def test_the_library_page_runs_block_after_block(
    minilm: Path,
    make_fine_tune: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    adapter = tmp_path_factory.mktemp("adapter")
    make_adapter(minilm, AutoModelForSequenceClassification, lora, adapter)
    names: dict[str, Any] = {
        "base_folder": str(minilm),
        "adapter_folder": str(adapter),
        "tuned_folder": str(make_fine_tune(minilm, ["place", "person"], scale=0.0005)),
        "work": tmp_path,
    }
    blocks = blocks_of("docs/library.md")
    assert len(blocks) == 10
    for block in blocks:
        assert len([line for line in block.splitlines() if line.strip()]) < 20
        exec(compile(block, "docs/library.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "2,271,322 of 22,713,216 parameters" in printed
    assert "12 matrices shifted by factors of rank {8}" in printed
    assert "merged by ties from ['" in printed
    assert names["found"].record.score == 1.0
    written = ("task", "paper", "from-memory", "adapter", "small", "smaller", "svd", "fitted", "distilled", "both")
    assert {p.name for p in tmp_path.iterdir()} == {*(f"{name}.ken" for name in written), "pruned"}
    assert names["small"].size < names["file"].size


def test_the_example_runs(
    minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = str(ROOT / "examples" / "prune_and_swap.py")
    monkeypatch.setattr(sys, "argv", [example, str(tmp_path)])
    runpy.run_path(example, run_name="__main__")
    printed = capsys.readouterr().out
    assert "news answers" in printed
    assert "genres answers" in printed
    assert "tensors that differ from the base afterwards: 0" in printed

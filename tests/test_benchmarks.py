"""Benchmarks run, print a table and write rows; what they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["selection", "accuracy", "serving", "swap", "cold", "simulate", "dtypes"])
def test_a_quick_run_writes_rows_that_say_what_ratios_are_against(name: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", out]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    content = json.loads(out.read_text())
    assert {"date", "cores", "processor", "versions"} <= set(content["machine"])
    assert len(content["rows"]) > 10
    assert all(row["against"] for row in content["rows"] if row["unit"] == "ratio")
    assert "│" in ended.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_benchmark_says_so() -> None:
    ended = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "CUDA" in ended.stderr
    assert "Traceback" not in ended.stderr

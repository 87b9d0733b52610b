"""The number of cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.engine.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 6), ("", 6)],
)
def test_a_containers_limit_counts_and_is_rounded_up(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert usable_cores(tmp_path / "cpu.max") == cores


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert usable_cores(tmp_path / "none") == 2

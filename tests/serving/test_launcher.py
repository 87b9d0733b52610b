"""What the launcher decides before anything starts."""

from __future__ import annotations

import pytest

from serving.config import load_settings
from serving.launcher import _with_threads


@pytest.mark.parametrize(
    ("asked", "replicas", "cores", "threads"), [(0, 1, 8, 8), (0, 3, 8, 2), (0, 4, 2, 1), (5, 3, 8, 5)]
)
def test_replicas_of_one_machine_share_its_cores_unless_told(
    asked: int, replicas: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.launcher.usable_cores", lambda: cores)
    settings = load_settings(base="minilm", threads=asked, replicas=replicas)
    assert _with_threads(settings).shareable()["threads"] == threads

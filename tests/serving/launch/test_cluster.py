"""What a private cluster is given: threads for each replica, and a token."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config import load_settings
from serving.launch.cluster import _new_token, _with_threads


@pytest.mark.parametrize(
    ("asked", "replicas", "cores", "threads"), [(0, 1, 8, 8), (0, 3, 8, 2), (0, 4, 2, 1), (5, 3, 8, 5)]
)
def test_replicas_of_one_machine_share_its_cores_unless_told(
    asked: int, replicas: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.launch.cluster.usable_cores", lambda: cores)
    settings = load_settings(base="minilm", threads=asked, replicas=replicas)
    assert _with_threads(settings).shareable()["threads"] == threads


def test_each_cluster_has_a_token_of_its_own_that_only_its_owner_reads(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    files = [_new_token(folder) for folder in folders]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert len({file.read_text() for file in files}) == 2
    assert all(len(file.read_text()) == 64 for file in files)

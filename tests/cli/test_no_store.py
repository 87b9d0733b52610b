"""Commands where no server and no store is named, and there is no embedded store yet."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.running import run

READING_OR_TIDYING = [
    ("tasks",),
    ("promote", "mood", "canary"),
    ("rollback", "mood"),
    ("rm", "mood"),
    ("route", "mood"),
    ("route", "mood", "live=1"),
    ("history", "mood"),
    ("gc",),
    ("keys", "list"),
    ("keys", "revoke", "0" * 12),
]


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory without a store."""
    for name in [k for k in os.environ if k.startswith("KEN_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "data"
    monkeypatch.setenv("KEN_DATA_DIR", str(folder))
    return folder


@pytest.mark.parametrize("command", READING_OR_TIDYING, ids=" ".join)
def test_a_command_that_reads_or_tidies_makes_no_store_and_says_what_to_name(
    command: tuple[str, ...], nowhere: Path
) -> None:
    ended = run(*command)
    assert ended.returncode == 1
    said = " ".join(ended.stderr.split())
    assert f"there is no store in {nowhere}" in said
    assert all(option in said for option in ("--url", "--redis-url", "--data-dir"))
    assert not nowhere.exists()


def test_publish_makes_the_store_and_says_so_once(
    nowhere: Path, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    delta = tmp_path / "mood.ken"
    assert run("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", delta).returncode == 0
    first, again = run("publish", "mood", delta), run("publish", "mood", delta)
    assert (first.returncode, again.returncode) == (0, 0)
    assert f"making a store in {nowhere / 'store'}" in " ".join(first.stderr.split())
    assert "making a store" not in again.stderr
    assert "mood" in run("tasks").stdout


def test_the_first_key_may_be_made_before_anything_is_published(nowhere: Path) -> None:
    made = run("keys", "create", "ops", "--scope", "admin")
    assert made.returncode == 0
    assert "making a store" in " ".join(made.stderr.split())
    assert "ops" in run("keys", "list").stdout

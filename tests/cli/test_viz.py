"""`ken viz` as a user runs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import run as ken


@pytest.fixture(autouse=True)
def _own_data_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEN_DATA_DIR", str(tmp_path_factory.getbasetemp() / "viz-data"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def make_delta(
    tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``make_delta(task, name)``: a delta file of that name in a folder of its own."""

    def make(task: str, name: str = "") -> Path:
        file = tmp_path_factory.mktemp(task) / (name or f"{task}.ken")
        ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned[task], "--out", file, "--keep", "0.1")
        assert ended.returncode == 0, ended.stderr
        return file

    return make


@pytest.fixture(scope="module")
def deltas(make_delta: Callable[..., Path]) -> list[Path]:
    return [make_delta("topics"), make_delta("mood")]


ONE = ("--tensor", "*.1.*query.weight")


def test_viz_writes_pictures_and_a_page_and_prints_what_is_kept_and_the_overlap(
    tiny_base: Path, deltas: list[Path], tmp_path: Path
) -> None:
    ended = ken("viz", *deltas, "--base", tiny_base, "--out", tmp_path / "out", *ONE)
    assert ended.returncode == 0, ended.stderr
    pictures = list((tmp_path / "out").glob("*.png"))
    assert (tmp_path / "out" / "index.html").stat().st_size > sum(p.stat().st_size for p in pictures)
    assert f"wrote {len(pictures)} pictures" in ended.stderr
    assert "index.html" in ended.stderr
    assert "wrote" not in ended.stdout
    for text in ("attention.self.query.bias", "embeddings.word_embeddings", "topics", "mood", "all", "10.0%"):
        assert text in ended.stdout
    assert "topics and mood" in ended.stdout
    assert "by chance" in ended.stdout


@pytest.mark.usefixtures("blank_pictures")
def test_viz_of_one_delta_prints_no_overlap(tiny_base: Path, deltas: list[Path], tmp_path: Path) -> None:
    ended = ken("viz", deltas[0], "--base", tiny_base, "--out", tmp_path / "out", *ONE)
    assert ended.returncode == 0, ended.stderr
    assert "overlap" not in ended.stdout


@pytest.mark.usefixtures("blank_pictures")
def test_viz_as_json_has_every_figure(tiny_base: Path, deltas: list[Path], tmp_path: Path) -> None:
    ended = ken("viz", *deltas, "--base", tiny_base, "--out", tmp_path / "out", *ONE, "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert {row["file"] for row in found["pictures"]} == {p.name for p in (tmp_path / "out").glob("*.png")}
    assert [row["delta"] for row in found["deltas"]] == ["topics", "mood"]
    for row in found["deltas"]:
        assert row["kept"] / row["elements"] == row["fraction"] == pytest.approx(0.1, abs=0.001)
        for parts in (row["by_kind"], row["by_layer"]):
            assert sum(part["kept"] for part in parts) == row["kept"]
            assert sum(part["elements"] for part in parts) == row["elements"]
        assert {part["layer"] for part in row["by_layer"]} == {None, 0, 1}
        (around,) = row["neighbours"]
        assert around["tensor"] == "encoder.layer.1.attention.self.query.weight"
        assert 0 <= around["mean"] <= 4
    (pair,) = found["overlaps"]
    assert (pair["first"], pair["second"]) == ("topics", "mood")
    assert pair["jaccard"] == pytest.approx(pair["jaccard_by_chance"], abs=0.03)  # their noise is independent
    assert {part["layer"] for part in pair["by_layer"]} == {None, 0, 1}


@pytest.mark.usefixtures("blank_pictures")
def test_viz_tells_deltas_of_one_file_name_apart(
    tiny_base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    same = [make_delta("topics", "task.ken"), make_delta("mood", "task.ken")]
    found = json.loads(ken("viz", *same, "--base", tiny_base, "--out", tmp_path / "out", *ONE, "--json").stdout)
    assert [row["delta"] for row in found["deltas"]] == [f"{path.parent.name}/task" for path in same]


@pytest.mark.usefixtures("blank_pictures")
def test_viz_of_many_deltas_prints_a_row_each_and_the_largest_overlaps(
    tiny_base: Path, deltas: list[Path], tmp_path: Path
) -> None:
    ended = ken("viz", *deltas * 3, deltas[0], "--base", tiny_base, "--out", tmp_path / "out", *ONE)
    assert ended.returncode == 0, ended.stderr
    assert "mood (3)" in ended.stdout
    assert "the 10 largest of 21" in ended.stdout
    assert ended.stdout.count(" and ") == 10
    assert "attention.self" not in ended.stdout


@pytest.mark.usefixtures("blank_pictures")
def test_viz_prints_a_file_name_that_looks_like_markup_as_it_is(
    tiny_base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    odd = make_delta("topics", "[bold]x.ken")
    ended = ken("viz", odd, odd, "--base", tiny_base, "--out", tmp_path / "out", *ONE)
    assert ended.returncode == 0, ended.stderr
    assert "[bold]x" in ended.stdout


def test_viz_refuses_a_pattern_that_matches_nothing(tiny_base: Path, deltas: list[Path], tmp_path: Path) -> None:
    ended = ken("viz", *deltas, "--base", tiny_base, "--out", tmp_path / "out", "--tensor", "*.qery.*")
    assert ended.returncode == 1
    assert "'*.qery.*'" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_viz_refuses_a_delta_of_another_base(minilm: Path, deltas: list[Path], tmp_path: Path) -> None:
    ended = ken("viz", deltas[0], "--base", minilm, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "fingerprint" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_viz_leaves_a_folder_alone_that_is_not_empty(tiny_base: Path, deltas: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    ended = ken("viz", deltas[0], "--base", tiny_base, "--out", tmp_path)
    assert ended.returncode == 2
    assert "exists already" in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_viz_without_matplotlib_says_what_to_install(
    tiny_base: Path, deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = ken("viz", deltas[0], "--base", tiny_base, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "pip install 'ken-serve[viz]'" in ended.stderr


@pytest.mark.parametrize("arguments", [(), ("DELTA",), ("DELTA", "--base", "b"), ("--base", "b", "--out", "o")])
def test_viz_used_wrongly_ends_with_2(deltas: list[Path], arguments: tuple[str, ...]) -> None:
    ended = ken("viz", *(deltas[0] if a == "DELTA" else a for a in arguments))
    assert ended.returncode == 2


def test_viz_has_help_with_an_example() -> None:
    ended = ken("viz", "--help")
    assert ended.returncode == 0
    assert "Example: ken viz" in ended.stdout

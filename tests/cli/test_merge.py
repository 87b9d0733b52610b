"""`ken merge` as a user runs it, and the other commands on the delta it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from tests.cli.running import Ken, facts


@pytest.fixture(scope="module")
def files(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A delta of each fine-tune, by name."""
    folder = tmp_path_factory.mktemp("deltas")
    for name, tuned in tiny_tuned.items():
        ended = ken("extract", "--base", tiny_base, "--tuned", tuned, "--out", folder / f"{name}.ken", "--keep", "1")
        assert ended.returncode == 0, ended.stderr
    return {name: folder / f"{name}.ken" for name in tiny_tuned}


@pytest.fixture(scope="module")
def digests(ken: Ken, files: dict[str, Path]) -> dict[str, object]:
    return {name: facts(ken("inspect", file, "--json"))["digest"] for name, file in files.items()}


def test_the_result_names_its_parents_and_has_the_head_of_one(
    ken: Ken, tiny_base: Path, files: dict[str, Path], digests: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "both.ken"
    parts = (f"{files['mood']}=0.7", f"{files['topics']}=-0.3")
    options = ("--method", "ties", "--density", "0.2", "--head", files["topics"], "--codec", "int4")
    found = facts(ken("merge", *parts, "--base", tiny_base, "--out", out, *options, "--json"))
    assert found["labels"] == ["place", "person", "number"]
    assert found["codec"] == "int4"
    assert found["merged"] == {
        "method": "ties",
        "density": 0.2,
        "normalize": True,
        "seed": 0,
        "parents": [
            {"digest": digests["mood"], "weight": 0.7},
            {"digest": digests["topics"], "weight": -0.3},
        ],
        "head": 1,
    }
    shown = ken("inspect", out).stdout
    assert "method  merged by ties, density 0.2, weights normalised" in shown
    assert f"parents  0.7 of {str(digests['mood'])[:16]}…, -0.3 of {str(digests['topics'])[:16]}… (its head)" in shown


def test_one_file_of_weight_1_gives_its_own_model_and_the_first_file_is_the_head(
    ken: Ken, tiny_base: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    parts = (f"{files['mood']}=1", f"{files['topics']}=0")
    ended = ken("merge", *parts, "--base", tiny_base, "--out", tmp_path / "d.ken")
    assert ended.returncode == 0, ended.stderr
    assert (
        ken("apply", "--base", tiny_base, "--delta", tmp_path / "d.ken", "--out", tmp_path / "merged").returncode == 0
    )
    assert ken("apply", "--base", tiny_base, "--delta", files["mood"], "--out", tmp_path / "own").returncode == 0
    merged, own = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict() for name in ("merged", "own")
    )
    assert all(tensor.equal(own[name]) for name, tensor in merged.items())


def test_a_merge_is_published_like_any_delta(ken: Ken, tiny_base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    parts = (f"{files['mood']}=0.5", f"{files['stars']}=0.5")
    out = tmp_path / "d.ken"
    found = facts(ken("merge", *parts, "--base", tiny_base, "--out", out, "--method", "dare-linear", "--json"))
    assert ken("publish", "merged", out).returncode == 0
    assert facts(ken("tasks", "--json"))["tasks"][0]["aliases"]["live"] == found["digest"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("MOOD",), (), "expected a file and its weight, such as trec.ken=0.7"),
        (("MOOD=much",), (), "expected a file and its weight"),
        (("MOOD=nan",), (), "expected a file and its weight"),
        (("=1",), (), "expected a file and its weight"),
        (("MOOD=1", "MOOD=2"), (), "is given twice"),
        (("MOOD=1",), ("--head", "other.ken"), "add other.ken=0 to use its head alone"),
        (("MOOD=1",), ("--method", "mean"), "choose one of linear, ties, dare-linear, dare-ties"),
        (("MOOD=1",), ("--method", "ties", "--density", "0"), "must lie above 0 and be at most 1"),
        (("MOOD=1",), ("--density", "0.5"), "linear keeps shifts whole"),
        (("MOOD=1",), ("--codec", "lzma"), "choose raw, zstd, int8, int4, sign"),
    ],
)
def test_what_is_used_wrongly_ends_with_2(
    ken: Ken,
    tiny_base: Path,
    files: dict[str, Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    text: str,
) -> None:
    parts = [argument.replace("MOOD", str(files["mood"])) for argument in arguments]
    ended = ken("merge", *parts, "--base", tiny_base, "--out", tmp_path / "d.ken", *options)
    assert ended.returncode == 2
    assert text in " ".join(ended.stderr.replace("│", " ").split())
    assert not (tmp_path / "d.ken").exists()


def test_deltas_of_another_base_and_weights_of_0_end_with_1(
    ken: Ken, tiny_base: Path, minilm: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    other = ken("merge", f"{files['mood']}=1", "--base", minilm, "--out", tmp_path / "d.ken")
    assert other.returncode == 1
    assert "was made against base" in other.stderr
    nothing = ken("merge", f"{files['mood']}=0", "--base", tiny_base, "--out", tmp_path / "d.ken")
    assert nothing.returncode == 1
    assert "all weights are 0" in nothing.stderr
    assert not (tmp_path / "d.ken").exists()

"""`ken diff`: what two deltas hold, how far apart their values are, and which answers changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Ken, facts
from tests.tiny_language_models import write_language_model

TEXTS = ["good", "a boring film", "who was the king", "how many actors", "the price of war", "bad city [sic]"]


@pytest.fixture(scope="module")
def files(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Deltas: of mood, as a tenth of its elements, all of them, and factors; of topics; of stars."""
    folder = tmp_path_factory.mktemp("deltas")
    made = {
        "tenth": ("mood", "--keep", "0.1"),
        "all": ("mood", "--keep", "1"),
        "factors": ("mood",),
        "topics": ("topics", "--keep", "0.1"),
    }
    for name, (task, *options) in made.items():
        command = ("extract", "--base", tiny_base, "--tuned", tiny_tuned[task], "--out", folder / f"{name}.ken")
        assert ken(*command, *options).returncode == 0
    return {name: folder / f"{name}.ken" for name in made}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def found(ken: Ken, *arguments: object) -> dict[str, Any]:
    return facts(ken("diff", *arguments, "--json"))


def test_a_delta_does_not_differ_from_itself(ken: Ken, tiny_base: Path, files: dict[str, Path], text: Path) -> None:
    same = found(ken, files["tenth"], files["tenth"], "--base", tiny_base, "--text", text)
    assert same["differs"] == []
    backbone = same["backbone"]
    assert backbone["positions"]["jaccard"] == 1.0
    assert backbone["shifts"]["cosine"] == pytest.approx(1.0)
    assert backbone["at_shared_positions"]["distance"] == pytest.approx(0.0, abs=1e-6)
    assert not backbone["head_differs"]
    assert same["answers"] == {"inputs": 6, "agreement": 1.0, "changed": []}


def test_a_smaller_delta_of_one_fine_tune_holds_a_part_of_the_same_values(
    ken: Ken, tiny_base: Path, files: dict[str, Path]
) -> None:
    backbone = found(ken, files["tenth"], files["all"], "--base", tiny_base)["backbone"]
    positions = backbone["positions"]
    assert positions["both"] == positions["first"] < positions["second"]
    assert backbone["at_shared_positions"]["elements"] == positions["both"]
    assert backbone["at_shared_positions"]["distance"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < backbone["shifts"]["cosine"] < 1


def test_deltas_of_other_tasks_share_positions_by_chance_alone(
    ken: Ken, tiny_base: Path, files: dict[str, Path], text: Path
) -> None:
    other = found(ken, files["tenth"], files["topics"], "--base", tiny_base, "--text", text, "--most", "2")
    assert other["labels"]["only_first"] == ["bad", "good"]
    assert {"bytes", "labels"} <= set(other["differs"])
    positions = other["backbone"]["positions"]
    assert positions["jaccard"] == pytest.approx(positions["jaccard_by_chance"], rel=0.5)
    assert other["answers"]["agreement"] == 0
    assert len(other["answers"]["changed"]) == 2
    assert other["answers"]["changed"][0]["first"][0]["label"] in ("bad", "good")


def test_factors_are_compared_by_the_shifts_that_they_make(ken: Ken, tiny_base: Path, files: dict[str, Path]) -> None:
    backbone = found(ken, files["factors"], files["all"], "--base", tiny_base)["backbone"]
    assert 0.1 < backbone["shifts"]["cosine"] < 1


def test_without_a_base_the_files_alone_are_compared(ken: Ken, files: dict[str, Path]) -> None:
    ended = ken("diff", files["tenth"], files["factors"])
    assert ended.returncode == 0, ended.stderr
    assert "magnitude" in ended.stdout
    assert "svd" in ended.stdout
    assert "differs" in ended.stdout
    assert "positions" not in ended.stdout


def test_a_task_of_the_store_is_compared_with_a_file(
    ken: Ken, tiny_base: Path, files: dict[str, Path], text: Path
) -> None:
    assert ken("publish", "mood", files["all"]).returncode == 0
    ended = ken("diff", "mood@live", files["topics"], "--base", tiny_base, "--text", text)
    assert ended.returncode == 0, ended.stderr
    for part in ("mood@live", "only in mood@live: bad, good", "Jaccard", "6 changed", "bad city [sic]"):
        assert part in ended.stdout
    digest = str(facts(ken("inspect", files["all"], "--json"))["digest"])
    assert found(ken, f"mood@{digest[:12]}", files["all"])["differs"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("nothing@live", "nothing@live"), 1, "there is no task"),
        (("./nothing.ken", "./nothing.ken"), 2, "found no file"),
        (("FOLDER", "FOLDER"), 2, "is a folder"),
        (("FILE", "FILE", "--text", "x"), 2, "give --base"),
    ],
)
def test_what_is_no_delta_is_refused(
    ken: Ken,
    files: dict[str, Path],
    tiny_tuned: dict[str, Path],
    arguments: tuple[str, ...],
    code: int,
    text: str,
) -> None:
    assert ken("publish", "mood", files["all"]).returncode == 0
    known = {"FOLDER": tiny_tuned["mood"], "FILE": files["all"]}
    ended = ken("diff", *(known.get(one, one) for one in arguments))
    assert ended.returncode == code
    assert text in " ".join(ended.stderr.replace("│", " ").split())


def test_generated_texts_are_not_compared(ken: Ken, tmp_path: Path, text: Path) -> None:
    folder, file = write_language_model(tmp_path / "model"), tmp_path / "lm.ken"
    assert ken("extract", "--base", folder, "--tuned", folder, "--out", file, "--keep", "1").returncode == 0
    ended = ken("diff", file, file, "--base", folder, "--text", text)
    assert ended.returncode == 1
    assert "texts are generated by a server alone" in ended.stderr

"""Choosing what is kept, from the command line: methods, tensors, codecs, calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ken_core import open_base
from tests.cli.running import Ken, facts


def extract(ken: Ken, base: Path, tuned: Path, out: Path, *options: str) -> dict[str, object]:
    return facts(ken("extract", "--base", base, "--tuned", tuned, "--out", out, "--json", *options))


def test_ken_grid_takes_k(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    found = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d", "--method", "ken-grid", "--k", "5")
    assert (found["method"], found["budget"]) == ("ken-grid", {"scope": "row", "k": 5})
    ended = ken(
        "extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "e", "--method", "ken-grid"
    )
    assert ended.returncode == 2
    assert "give k" in ended.stderr


def test_the_default_is_a_45th_of_the_base_as_factors(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    found = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d")
    assert (found["method"], found["codec"]) == ("svd", "int4")
    backbone = sum(t.nbytes for t in open_base(str(tiny_base)).backbone_tensors.values())
    assert found["budget"] == {"scope": "global", "nbytes": backbone // 45}
    assert found["lowrank"]["parameters"] > 0  # type: ignore[index]


def test_any_method_takes_a_size(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    for method in ("magnitude", "ken", "random"):
        sized = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / method, "--method", method, "--size", "45kB")
        assert (sized["method"], sized["codec"]) == (method, "zstd")
        assert 40_000 < sized["bytes"] <= 45_000  # type: ignore[operator]


def test_svd_takes_a_size_or_an_energy(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    sized = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d", "--method", "svd", "--size", "70kB")
    assert (sized["method"], sized["codec"]) == ("svd", "int4")
    assert (tmp_path / "d").stat().st_size == sized["bytes"] <= 70_000  # type: ignore[operator]
    assert sized["lowrank"]["parameters"] > 0  # type: ignore[index]
    shared = extract(
        ken, tiny_base, tiny_tuned["mood"], tmp_path / "e", "--method", "svd", "--energy", "0.9", "--codec", "zstd"
    )
    assert shared["budget"] == {"scope": "global", "energy": 0.9}
    ended = ken("apply", "--base", tiny_base, "--delta", tmp_path / "e", "--out", tmp_path / "applied")
    assert ended.returncode == 0, ended.stderr


def test_kept_values_can_be_fitted_to_texts(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "the rain"}\n{"text": "a film"}\n')
    plain = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d", "--keep", "0.1")
    text = ("--keep", "0.1", "--fit", "--text", str(tmp_path / "texts.jsonl"))
    fitted = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "e", *text)
    blind = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "g", "--keep", "0.1", "--fit")
    assert (plain["fitted"], fitted["fitted"], blind["fitted"]) == (None, 2, 0)
    assert len({plain["digest"], fitted["digest"], blind["digest"]}) == 3
    assert "after a fit of the kept values to 2 texts" in ken("inspect", tmp_path / "e").stdout
    assert "after a fit of the kept values to random tokens" in ken("inspect", tmp_path / "g").stdout
    missing = ken(
        "extract",
        "--base",
        tiny_base,
        "--tuned",
        tiny_tuned["mood"],
        "--out",
        tmp_path / "f",
        "--keep",
        "0.1",
        "--fit",
        "--text",
        tmp_path / "none",
    )
    assert missing.returncode == 1
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("method", [("--keep", "0.02"), ("--size", "30kB"), ("--method", "magnitude", "--fit")])
def test_values_can_be_distilled_on_texts(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, method: tuple[str, ...]
) -> None:
    words = ["the rain", "a film", "many bad kings", "what was good", "how far is the river"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    more = ("--distil", "5", "--text", str(tmp_path / "texts.jsonl"))
    found = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d", *method, *more)
    record: dict[str, float] = found["distilled"]  # type: ignore[assignment]
    assert (record["steps"], record["texts"], record["held_out"]) == (5, 5, 0)
    assert record["after"] < record["before"]
    told = " ".join(ken("inspect", tmp_path / "d").stdout.split())
    assert "values trained in 5 steps on 5 texts; on the same texts, the divergence from the fine-tune's" in told
    if "--size" in method:
        assert found["bytes"] == (tmp_path / "d").stat().st_size <= 30_000  # type: ignore[operator]


def test_a_size_that_no_delta_can_have_is_refused(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    common = ("--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d")
    ended = ken("extract", *common, "--size", "9kB")
    assert ended.returncode == 1
    assert "give a larger size" in ended.stderr
    assert "0 were asked for" in ken("extract", *common, "--size", "0B").stderr
    assert not (tmp_path / "d").exists()


def test_a_preset_and_globs_choose_the_tensors(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "d"
    found = extract(
        ken, tiny_base, tiny_tuned["mood"], out, "--keep", "0.1", "--only", "attention", "--exclude", "*.bias"
    )
    assert found["only"] == {
        "include": ["*attention*", "*attn*"],
        "exclude": ["*norm*", "*Norm*", "*.bias"],
        "outside": "reset",
    }
    rows = facts(ken("inspect", out, "--json", "--tensors"))["per_tensor"]
    sparse = [r["tensor"] for r in rows if r["entry"] == "sparse"]  # type: ignore[attr-defined]
    assert len(sparse) == 8
    assert all(".attention." in name and name.endswith(".weight") for name in sparse)


def test_the_others_are_kept_in_full_where_asked(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    reset = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "r", "--include", "*query*", "--keep", "0.1")
    kept = extract(
        ken, tiny_base, tiny_tuned["mood"], tmp_path / "k", "--include", "*query*", "--keep", "0.1", "--outside", "keep"
    )
    assert kept["stored"] > 20 * reset["stored"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "heads"], "choose all, attention, no-embeddings"),
        (["--outside", "drop"], "'reset' or 'keep'"),
        (["--codec", "int3"], "raw, zstd, int8, int4, sign"),
        (["--method", "best"], "choose one of ken, ken-grid, ken-shift, magnitude, random, svd"),
        (["--method", "svd", "--size", "1 cm"], "a number and a unit, such as 1MB"),
        (["--size", "1MB", "--energy", "0.9"], "a size alone, without --keep, --k and --energy"),
        (["--size", "1MB", "--keep", "0.9"], "a size alone, without --keep, --k and --energy"),
        (["--size", "1MB", "--method", "ken-grid"], "found 'ken-grid'"),
        (["--method", "svd", "--energy", "2"], "at most 1"),
        (["--method", "svd", "--keep", "0.1"], "svd keeps no single elements"),
        (["--method", "svd", "--codec", "sign"], "svd takes raw, zstd, int8, int4"),
        (["--scope", "row"], "shares its size out over all tensors"),
        (["--method", "svd", "--fit", "--text", "texts.jsonl"], "directions, which need no scales"),
        (["--distil", "100"], "give --text FILE, with texts like those that the task will answer"),
        (["--distil", "0", "--text", "texts.jsonl"], "should be greater than or equal to 1"),
        (["--text", "texts.jsonl"], "the texts are for --fit or --distil; give one of them"),
        (["--method", "ken", "--energy", "0.9"], "only svd takes an energy"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, options: list[str], message: str
) -> None:
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d", *options)
    assert ended.returncode == 2
    assert message in " ".join(ended.stderr.split())
    assert not (tmp_path / "d").exists()


def test_a_glob_that_matches_nothing_fails_and_writes_nothing(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    ended = ken(
        "extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d", "--include", "*qeury*"
    )
    assert ended.returncode == 1
    assert "no tensor matches include *qeury*" in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["raw", "zstd", "int8", "int4", "sign"])
def test_inspect_shows_where_every_byte_goes(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, codec: str
) -> None:
    out = tmp_path / "d"
    extract(ken, tiny_base, tiny_tuned["mood"], out, "--keep", "0.1", "--codec", codec)
    found = facts(ken("inspect", out, "--json", "--tensors"))
    parts: dict[str, int] = found["bytes_by_part"]  # type: ignore[assignment]
    assert sum(parts.values()) == found["bytes"] == out.stat().st_size
    rows: list[dict[str, int]] = found["per_tensor"]  # type: ignore[assignment]
    assert sum(r["bytes"] for r in rows) == sum(parts.values()) - parts["manifest"]
    assert f"values, {codec}" in parts
    shown = ken("inspect", out, "--tensors").stdout
    assert "masks, " in shown
    assert "encoder.layer.0.attention.self.query.weight" in shown


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    starts, ends = ("who is", "what was", "how many", "when", "where"), ("good", "bad", "the king", "a city", "the war")
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"text": f"{a} {b}"}) + "\n" for a in starts for b in ends))
    return path


def test_calibrate_writes_the_delta_its_record_and_its_curve(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, dev: Path
) -> None:
    out, curve = tmp_path / "d.ken", tmp_path / "curve.png"
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", out, "--tolerance", "0.2"]
    found = facts(ken("calibrate", *common, "--method", "magnitude", "--codec", "sign", "--curve", curve, "--json"))
    record: dict[str, float] = found["calibration"]  # type: ignore[assignment]
    assert (record["metric"], record["examples"], record["choosing"]) == ("agreement", 20, 5)
    assert (record["tolerance"], record["promised"], record["confidence"]) == (0.2, 0.2, 0.9)
    assert (record["tuned_score"], record["score"] >= 0.8) == (1.0, True)
    tried: list[dict[str, object]] = found["tried"]  # type: ignore[assignment]
    assert [t["codec"] for t in tried][:2] == ["zstd", "sign"]
    assert (tried[0]["lost"], tried[0]["won"]) == (0, 0)
    assert found["bytes"] == out.stat().st_size
    with Image.open(curve) as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "d.ken", "dev.jsonl"]


def test_calibrate_prints_what_it_tried_and_what_it_promises(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, dev: Path
) -> None:
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", tmp_path / "d.ken"]
    ended = ken("calibrate", *common, "--tolerance", "0.2", "--confidence", "0.8")
    assert ended.returncode == 0, ended.stderr
    told = " ".join(ended.stdout.split())
    assert "tried: 5 examples chose by distance, 20 judged; the fine-tune's agreement is 1.0000" in told
    assert "with 80 % confidence it loses at most 20 points of agreement on all such text" in told
    assert "on 20 examples that had no part in choosing it" in told


def test_calibrate_for_a_size_says_what_is_lost_at_most(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, dev: Path
) -> None:
    dev.write_text(dev.read_text() * 2)
    out = tmp_path / "d.ken"
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", out]
    ended = ken("calibrate", *common, "--size", "30kB")
    assert ended.returncode == 0, ended.stderr
    assert out.stat().st_size <= 30_000
    assert "with 90 % confidence it loses at most" in ended.stdout
    assert "found 25 repeated lines" in ended.stderr
    shown = ken("inspect", out)
    assert "with 90 % confidence it loses at most" in shown.stdout


@pytest.mark.parametrize(
    ("options", "returncode", "message"),
    [
        (("--size", "1MB", "--tolerance", "0.1"), 2, "give a size or a tolerance, not both"),
        (("--size", "1"), 2, "expected a number and a unit"),
        (("--method", "ken-grid"), 2, "found 'ken-grid'; choose svd, ken, ken-shift, magnitude, random"),
        (("--tolerance", "0"), 1, "more than 0 and less than 1"),
        (("--tolerance", "0.01"), 1, "found 20 examples to judge by; to promise with 90 % confidence"),
        (("--tolerance", "0.01"), 1, "takes 230, even if not one answer changes. Give at least 288 distinct lines"),
        (("--size", "1kB"), 1, "give a larger size"),
    ],
)
def test_calibrate_says_why_it_promises_nothing(
    ken: Ken,
    tiny_base: Path,
    tiny_tuned: dict[str, Path],
    tmp_path: Path,
    dev: Path,
    options: tuple[str, ...],
    returncode: int,
    message: str,
) -> None:
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", tmp_path / "d.ken"]
    ended = ken("calibrate", *common, *options)
    assert ended.returncode == returncode
    assert message in " ".join(ended.stderr.replace("│", " ").split())
    assert [p.name for p in tmp_path.iterdir()] == ["dev.jsonl"]


def test_calibrate_refuses_labels_the_model_does_not_know(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text('{"text": "a", "label": "planet"}\n{"text": "b", "label": "good"}\n')
    ended = ken(
        "calibrate", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", data, "--out", tmp_path / "d"
    )
    assert ended.returncode == 1
    assert "'planet'; the model knows 0 'bad', 1 'good'" in ended.stderr

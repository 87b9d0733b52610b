"""Choosing what is kept, from the command line: methods, tensors, codecs, calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

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
    plain = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "d")
    text = ("--fit", "--text", str(tmp_path / "texts.jsonl"))
    fitted = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "e", *text)
    blind = extract(ken, tiny_base, tiny_tuned["mood"], tmp_path / "g", "--fit")
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
        "--fit",
        "--text",
        tmp_path / "none",
    )
    assert missing.returncode == 1
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("method", [("--keep", "0.02"), ("--method", "svd", "--size", "30kB"), ("--fit",)])
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
    if "svd" in method:
        assert found["bytes"] == (tmp_path / "d").stat().st_size <= 30_000  # type: ignore[operator]


def test_a_size_that_no_delta_can_have_is_refused(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    ended = ken(
        "extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d", "--method", "svd"
    )
    assert ended.returncode == 1
    assert "give a larger size" in ended.stderr
    common = ("--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d", "--method", "svd")
    assert "0 were asked for" in ken("extract", *common, "--size", "0B").stderr
    assert not (tmp_path / "d").exists()


def test_a_preset_and_globs_choose_the_tensors(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "d"
    found = extract(ken, tiny_base, tiny_tuned["mood"], out, "--only", "attention", "--exclude", "*.bias")
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
        (["--method", "svd", "--size", "1MB", "--energy", "0.9"], "a size or an energy, not both"),
        (["--method", "svd", "--energy", "2"], "at most 1"),
        (["--method", "svd", "--keep", "0.1"], "svd keeps no single elements"),
        (["--method", "svd", "--codec", "sign"], "svd takes raw, zstd, int8, int4"),
        (["--size", "1MB"], "only the method svd takes a size"),
        (["--method", "svd", "--scope", "row"], "shares its size out over all tensors"),
        (["--method", "svd", "--fit", "--text", "texts.jsonl"], "directions, which need no scales"),
        (["--distil", "100"], "give --text FILE, with texts like those that the task will answer"),
        (["--distil", "0", "--text", "texts.jsonl"], "should be greater than or equal to 1"),
        (["--text", "texts.jsonl"], "the texts are for --fit or --distil; give one of them"),
        (["--method", "ken", "--energy", "0.9"], "only the method svd takes a size"),
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
    extract(ken, tiny_base, tiny_tuned["mood"], out, "--codec", codec)
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
    texts = [
        f"{a} {b}" for a in ("who is", "what was", "how many", "when", "where") for b in ("good", "bad", "the king")
    ]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return path


def test_calibrate_writes_the_delta_its_record_and_its_curve(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, dev: Path
) -> None:
    out, curve = tmp_path / "d.ken", tmp_path / "curve.png"
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", out, "--tolerance", "0.1"]
    found = facts(
        ken(
            "calibrate",
            *common,
            "--method",
            "magnitude",
            "--codec",
            "zstd",
            "--codec",
            "sign",
            "--curve",
            curve,
            "--json",
        )
    )
    record: dict[str, float] = found["calibration"]  # type: ignore[assignment]
    assert (record["metric"], record["examples"], record["tuned_score"]) == ("agreement", 15, 1.0)
    assert record["score"] >= 0.9
    assert 0 < record["confidence"] < 1
    assert {t["codec"] for t in found["tried"]} == {"zstd", "sign"}  # type: ignore[attr-defined]
    assert found["bytes"] == out.stat().st_size
    with Image.open(curve) as picture:
        assert min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve.png", "d.ken", "dev.jsonl"]


def test_calibrate_prints_what_it_tried_and_how_sure_it_is(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, dev: Path
) -> None:
    common = ["--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", dev, "--out", tmp_path / "d.ken"]
    ended = ken("calibrate", *common, "--method", "magnitude", "--codec", "zstd")
    assert ended.returncode == 0, ended.stderr
    assert "deltas tried" in ended.stdout
    told = " ".join(ended.stdout.split())
    assert "% confidence, it falls by at most" in told
    assert "The delta was chosen on these examples: check it on others" in told


def test_calibrate_refuses_labels_the_model_does_not_know(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    data = tmp_path / "dev.jsonl"
    data.write_text('{"text": "a", "label": "planet"}\n')
    ended = ken(
        "calibrate", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--data", data, "--out", tmp_path / "d"
    )
    assert ended.returncode == 1
    assert "'planet'; the model knows 0 'bad', 1 'good'" in ended.stderr

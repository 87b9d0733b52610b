"""`ken import-peft` as a user runs it, and the other commands on the delta it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import Ken, facts

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForSequenceClassification

    from tests.ken_core.adapters import make_adapter

    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], bias="lora_only")
    folder = tmp_path_factory.mktemp("adapter")
    return make_adapter(tiny_base, AutoModelForSequenceClassification, config, folder, num_labels=3).folder


@pytest.fixture(scope="module")
def delta(ken: Ken, adapter: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("delta") / "mood.ken"
    ended = ken("import-peft", adapter, "--base", tiny_base, "--out", file, "--labels", "bad, so-so, good")
    assert ended.returncode == 0, ended.stderr
    assert "imported from a LoRA adapter of peft" in ended.stdout
    assert "4 tensors, rank 4, 1,024 parameters in factors" in ended.stdout
    return file


def test_inspect_tells_ranks_and_where_the_bytes_go(ken: Ken, delta: Path) -> None:
    found = facts(ken("inspect", delta, "--json", "--tensors"))
    assert found["adapter"] == "lora"
    assert found["labels"] == ["bad", "so-so", "good"]
    assert found["lowrank"] == {"tensors": 4, "least_rank": 4, "most_rank": 4, "parameters": 1024}
    assert sum(found["bytes_by_part"].values()) == found["bytes"]  # type: ignore[attr-defined]
    rows = [r for r in found["per_tensor"] if r["entry"] == "lowrank"]  # type: ignore[attr-defined]
    assert [r["stored"] for r in rows] == [256] * 4
    assert sum(r["bytes"] for r in rows) == found["bytes_by_part"]["factors, zstd"]  # type: ignore[index]


def test_the_table_of_tensors_has_a_row_a_pair_of_factors(ken: Ken, delta: Path) -> None:
    ended = ken("inspect", delta, "--tensors")
    assert ended.returncode == 0
    assert ended.stdout.count("lowrank") == 4


def test_apply_writes_a_folder_transformers_loads(ken: Ken, tiny_base: Path, delta: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    ended = ken("apply", "--base", tiny_base, "--delta", delta, "--out", tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr
    answer = pipeline("text-classification", str(tmp_path / "whole"), top_k=None)(["a good film"])[0]
    assert {row["label"] for row in answer} == {"bad", "so-so", "good"}


def test_an_imported_delta_is_published_like_any_other(ken: Ken, delta: Path) -> None:
    assert ken("publish", "adapted", delta).returncode == 0
    assert facts(ken("tasks", "--json"))["tasks"][0]["task"] == "adapted"  # type: ignore[index]
    assert ken("rm", "adapted", "--force").returncode == 0


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--labels", "bad,good"), 1, "2 labels were given"),
        (("--architecture", "BertForNothing"), 1, "is a 'BertForNothing', which this transformers does not know"),
        (("--out", "/nonexistent/folder/d.ken"), 2, "no folder"),
    ],
)
def test_what_does_not_go_is_refused_and_nothing_written(
    ken: Ken, adapter: Path, tiny_base: Path, tmp_path: Path, options: tuple[str, ...], code: int, text: str
) -> None:
    out = () if "--out" in options else ("--out", tmp_path / "d.ken")
    ended = ken("import-peft", adapter, "--base", tiny_base, *out, *options)
    assert ended.returncode == code
    assert text in " ".join(ended.stderr.split())
    assert not (tmp_path / "d.ken").exists()


def test_a_folder_that_is_no_adapter_is_refused(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    ended = ken("import-peft", tiny_base, "--base", tiny_base, "--out", tmp_path / "d.ken")
    assert ended.returncode == 1
    assert "no adapter_config.json" in ended.stderr


@pytest.mark.usefixtures("blank_pictures")
def test_viz_says_that_its_shifts_change_every_element_and_draws_them(
    ken: Ken, tiny_base: Path, delta: Path, tmp_path: Path
) -> None:
    ended = ken("viz", delta, "--base", tiny_base, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert "mood: a shift of low rank 4 changes every element of 4 tensors" in ended.stderr
    found = facts(ken("viz", delta, "--base", tiny_base, "--out", tmp_path / "again", "--json"))
    (one,) = found["deltas"]  # type: ignore[misc]
    assert {row["rank"] for row in one["low_rank"]} == {4}
    drawn = [picture["title"] for picture in found["pictures"] if picture["view"] == "matrix"]  # type: ignore[attr-defined]
    assert {f"mood: {row['tensor']}" for row in one["low_rank"]} <= set(drawn)

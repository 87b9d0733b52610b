"""What `ken extract` and related commands refuse, what they warn about, and what they ignore if told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import nn
from transformers import BertForSequenceClassification

from tests.cli.running import Ken, facts

Edit = Callable[..., Path]


@pytest.fixture
def edited(tiny_tuned: dict[str, Path], tmp_path: Path) -> Edit:
    """``edited(**config)``: a fine-tune with other keys in its config.json."""

    def copy(**config: object) -> Path:
        folder = Path(shutil.copytree(tiny_tuned["mood"], tmp_path / "edited"))
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        return folder

    return copy


def test_a_fine_tune_saved_by_an_older_transformers_is_extracted(
    ken: Ken, tiny_base: Path, edited: Edit, tmp_path: Path
) -> None:
    tuned = edited(position_embedding_type="absolute", transformers_version="4.46.3", pruned_heads={})
    facts(ken("extract", "--base", tiny_base, "--tuned", tuned, "--out", tmp_path / "d.ken", "--json"))
    ended = ken("apply", "--base", tiny_base, "--delta", tmp_path / "d.ken", "--out", tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr


def test_a_cross_encoder_is_extracted_and_applied_with_the_function_it_makes_scores_with(
    ken: Ken, tiny_base: Path, make_fine_tune: Callable[..., Path], tmp_path: Path
) -> None:
    single = make_fine_tune(tiny_base, ["relevant"], name="single")
    CrossEncoder(str(single), activation_fn=nn.Identity(), device="cpu").save_pretrained(str(tmp_path / "cross"))
    assert "Identity" in (tmp_path / "cross" / "config_sentence_transformers.json").read_text()
    ended = ken(
        "extract", "--base", tiny_base, "--tuned", tmp_path / "cross", "--out", tmp_path / "d.ken", "--keep", "1"
    )
    assert ended.returncode == 0, ended.stderr
    ken("apply", "--base", tiny_base, "--delta", tmp_path / "d.ken", "--out", tmp_path / "whole")
    pairs = [("how far is it", "far"), ("who is the king", "the actor")]
    ours, theirs = (CrossEncoder(str(tmp_path / name), device="cpu").predict(pairs) for name in ("whole", "cross"))
    assert ours.tolist() == theirs.tolist()


def test_a_config_key_that_is_read_is_refused_unless_it_is_ignored_by_name(
    ken: Ken, tiny_base: Path, edited: Edit, tmp_path: Path
) -> None:
    command = ("extract", "--base", tiny_base, "--tuned", edited(layer_norm_eps=1e-7), "--out", tmp_path / "d.ken")
    refused = ken(*command)
    assert refused.returncode == 1
    assert "--ignore-config layer_norm_eps" in refused.stderr
    assert ken(*command, "--ignore-config", "hidden_act").returncode == 1
    assert ken(*command, "--ignore-config", "layer_norm_eps").returncode == 0
    applied = ken("apply", "--base", tiny_base, "--delta", tmp_path / "d.ken", "--out", tmp_path / "whole")
    assert applied.returncode == 0, applied.stderr
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["layer_norm_eps"] == 1e-12


def test_a_model_trained_apart_is_extracted_with_a_loud_warning(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    config = BertForSequenceClassification.config_class.from_pretrained(tiny_base)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "stranger")
    command = ("extract", "--base", tiny_base, "--tuned", tmp_path / "stranger", "--out", tmp_path / "d.ken")
    ended = ken(*command, "--json")
    (warning,) = json.loads(ended.stdout)["warnings"]
    assert "hardly a fine-tune" in warning
    assert f"warning: {warning}" in ended.stderr
    assert "warning" not in ken(*command).stdout


def test_the_base_itself_is_extracted_with_a_warning(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_base, "--out", tmp_path / "d.ken", "--json")
    (warning,) = json.loads(ended.stdout)["warnings"]
    assert f"no weight of {tiny_base} differs" in warning
    assert "holds nothing, and answers as the base does" in warning


def test_a_fine_tune_raises_no_warning(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d.ken", "--json")
    assert facts(ended)["warnings"] == []
    assert ended.stderr == ""


@pytest.mark.parametrize("command", ["extract", "calibrate"])
def test_labels_that_are_not_numbered_from_0_end_with_1_and_no_traceback(
    ken: Ken, tiny_base: Path, edited: Edit, tmp_path: Path, command: str
) -> None:
    (tmp_path / "dev.csv").write_text("text\na good film\n")
    data = ("--data", tmp_path / "dev.csv") if command == "calibrate" else ()
    tuned = edited(id2label={"1": "bad", "2": "good"}, label2id={"bad": 1, "good": 2})
    ended = ken(command, "--base", tiny_base, "--tuned", tuned, "--out", tmp_path / "d.ken", *data)
    assert ended.returncode == 1
    assert "numbers its labels 1, 2; number them 0, 1," in ended.stderr
    assert "Traceback" not in ended.stderr


def test_weights_that_could_not_be_named_end_with_1(ken: Ken, tiny_base: Path, edited: Edit, tmp_path: Path) -> None:
    folder = edited()
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n.replace("query.weight", "query.base_layer.weight"): t for n, t in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    ended = ken("extract", "--base", tiny_base, "--tuned", folder, "--out", tmp_path / "d.ken")
    assert ended.returncode == 1
    assert "base_layer" in ended.stderr
    assert not (tmp_path / "d.ken").exists()


def test_a_delta_that_would_replace_a_folder_ends_with_2(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path)
    assert ended.returncode == 2
    assert "is a folder" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_csv_of_integer_labels_trains_and_calibrates(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    rows = [("who is the king", 1), ("who was the actor", 1), ("where is the city", 0), ("where was the war", 0)]
    (tmp_path / "train.csv").write_text("label,text\n" + "".join(f'{label},"{text}"\n' for text, label in rows))
    options = ("--epochs", "20", "--batch-size", "4", "--learning-rate", "5e-3")
    trained = ken(
        "finetune", "--base", tiny_base, "--data", tmp_path / "train.csv", "--out", tmp_path / "tuned", *options
    )
    assert trained.returncode == 0, trained.stderr
    found = facts(
        ken(
            "calibrate", "--base", tiny_base, "--tuned", tmp_path / "tuned", "--data", tmp_path / "train.csv",
            "--out", tmp_path / "d.ken", "--size", "1MB", "--json",
        )
    )  # fmt: skip
    assert found["labels"] == ["0", "1"]
    assert found["calibration"]["metric"] == "accuracy"  # type: ignore[index]
    assert found["calibration"]["tuned_score"] == 1.0  # type: ignore[index]

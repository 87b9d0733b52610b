"""The commands as a user runs them: exit codes, facts as JSON, errors that say what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.cli.running import Ken, facts
from tests.tiny_checkpoints import declare_embeddings
from tests.tiny_language_models import write_language_model


@pytest.fixture(scope="module")
def deltas(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Two deltas of one task, with different budgets."""
    folder = tmp_path_factory.mktemp("deltas")
    made = []
    for keep in ("0.1", "0.5"):
        file = folder / f"{keep}.ken"
        ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", file, "--keep", keep)
        assert ended.returncode == 0, ended.stderr
        made.append(file)
    return made


def test_extract_prints_what_was_kept(ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path) -> None:
    command = ("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], "--out", tmp_path / "d.ken", "--json")
    found = facts(ken(*command, "--keep", "0.1"))
    assert (found["method"], found["codec"]) == ("magnitude", "zstd")
    assert found["budget"] == {"scope": "global", "fraction": 0.1}
    assert found["labels"] == ["bad", "good"]
    assert found["stored"] <= found["selected"] == round(0.1 * found["candidates"])  # type: ignore[operator]
    assert found["bytes"] == (tmp_path / "d.ken").stat().st_size


def test_inspect_tells_the_same_as_extract(ken: Ken, deltas: list[Path]) -> None:
    found = facts(ken("inspect", deltas[0], "--json", "--tensors"))
    assert found["kind"] == "text-classification"
    assert sum(row["bytes"] for row in found["per_tensor"]) < found["bytes"]  # type: ignore[attr-defined, operator]


def test_inspect_tells_how_embeddings_are_made_and_whose_tokenizer_is_used(
    ken: Ken, tiny_base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "tuned"))
    declare_embeddings(folder, {"pooling_mode_cls_token": True}, "Dense", "Normalize")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense/config.json").write_text(json.dumps({"in_features": 32, "out_features": 5, "bias": False}))
    save_file({"linear.weight": torch.ones(5, 32)}, folder / "2_Dense/model.safetensors")
    about = {"prompts": {"query": "what is\n", "document": ""}, "default_prompt_name": "query", "truncate_dim": 4}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    AutoTokenizer.from_pretrained(folder, truncation_side="left").save_pretrained(folder)
    file = tmp_path / "d.ken"
    assert ken("extract", "--base", tiny_base, "--tuned", folder, "--out", file).returncode == 0
    shown = ken("inspect", file, "--tensors").stdout
    for line in (
        "tokenizer  the base's, with settings of its own",
        "pooling  cls, dense 32 to 5 (Tanh), scaled to length 1, the first 4 numbers",
        "texts  at most 20 tokens, lower-cased",
        r"prompts  'query': 'what is\n' (by default)",
        "0.linear.weight",
    ):
        assert line in shown
    found = facts(ken("inspect", file, "--json"))
    assert found["tokenizer"] == "own settings"
    assert found["embedding"]["pooling"] == ["cls"]  # type: ignore[index]
    assert sum(found["bytes_by_part"].values()) == found["bytes"]  # type: ignore[attr-defined]


def test_apply_writes_a_folder_transformers_loads(
    ken: Ken, tiny_base: Path, deltas: list[Path], tmp_path: Path
) -> None:
    from transformers import pipeline

    ended = ken("apply", "--base", tiny_base, "--delta", deltas[0], "--out", tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr
    answer = pipeline("text-classification", str(tmp_path / "whole"), top_k=None)(["a good film"])[0]
    assert {row["label"] for row in answer} == {"bad", "good"}


def test_a_task_is_published_promoted_rolled_back_and_removed(ken: Ken, deltas: list[Path]) -> None:
    first, second = (facts(ken("inspect", d, "--json"))["digest"] for d in deltas)
    assert ken("publish", "mood", deltas[0]).returncode == 0
    assert ken("publish", "mood", deltas[1], "--alias", "canary").returncode == 0
    listed = facts(ken("tasks", "--json"))["tasks"]
    assert listed[0]["aliases"] == {"live": first, "canary": second}  # type: ignore[index]
    assert ken("promote", "mood", "canary").returncode == 0
    assert facts(ken("tasks", "--json"))["tasks"][0]["aliases"]["live"] == second  # type: ignore[index]
    assert ken("rollback", "mood").returncode == 0
    assert facts(ken("tasks", "--json"))["tasks"][0]["aliases"]["live"] == first  # type: ignore[index]
    assert facts(ken("gc", "--json"))["deltas"] == 0
    assert ken("rm", "mood", "--force").returncode == 0
    assert facts(ken("gc", "--json"))["deltas"] == 2
    assert facts(ken("tasks", "--json"))["tasks"] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("rm", "nothing"), "no task 'nothing'"),
        (("rollback", "nothing"), "no task 'nothing'"),
        (("promote", "nothing", "0" * 64), "there is no task 'nothing'"),
        (("publish", "bad/name", "DELTA"), "expected 1 to 128 letters"),
        (("inspect", "/nonexistent.ken"), "cannot be read"),
        (("apply", "--base", "/nonexistent", "--delta", "DELTA", "--out", "/tmp/never"), "no such folder"),
    ],
)
def test_what_fails_ends_with_1_and_a_reason(
    ken: Ken, deltas: list[Path], arguments: tuple[str, ...], text: str
) -> None:
    ended = ken(*(deltas[0] if a == "DELTA" else a for a in arguments))
    assert ended.returncode == 1
    assert text in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--method", "best"), "unknown method"),
        (("--method", "ken", "--scope", "global"), "do not compare"),
        (("--keep", "1.5"), "between 0 and 1"),
        (("--keep", "0.1", "--k", "3"), "exactly one"),
        (("--codec", "lzma"), "choose raw, zstd, int8, int4, sign"),
        (("--out", "/nonexistent/folder/d.ken"), "no folder"),
    ],
)
def test_what_is_used_wrongly_ends_with_2(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path, options: tuple[str, ...], text: str
) -> None:
    out = () if "--out" in options else ("--out", tmp_path / "d.ken")
    ended = ken("extract", "--base", tiny_base, "--tuned", tiny_tuned["mood"], *out, *options)
    assert ended.returncode == 2
    assert text in " ".join(ended.stderr.split())
    assert not (tmp_path / "d.ken").exists()


def test_a_delta_of_another_base_is_refused_with_both_fingerprints(
    ken: Ken, minilm: Path, deltas: list[Path], tmp_path: Path
) -> None:
    ended = ken("apply", "--base", minilm, "--delta", deltas[0], "--out", tmp_path / "never")
    assert ended.returncode == 1
    assert str(facts(ken("inspect", deltas[0], "--json"))["fingerprint"]) in ended.stderr
    assert not (tmp_path / "never").exists()


def test_apply_leaves_a_folder_alone_that_is_not_empty(
    ken: Ken, tiny_base: Path, deltas: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    ended = ken("apply", "--base", tiny_base, "--delta", deltas[0], "--out", tmp_path)
    assert ended.returncode == 2
    assert "exists already" in ended.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_finetune_names_the_line_that_is_wrong(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "fine", "label": "a"}\n{"text": 5, "label": "b"}\n')
    ended = ken("finetune", "--base", tiny_base, "--data", data, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "line 2" in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    rows = [
        {"text": f"{word} {i}", "label": label} for word, label in (("who", "a"), ("where", "b")) for i in range(10)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("options", "trained", "told"),
    [
        ((), "18 examples", r"accuracy \d\.\d{3} on 2 examples held out of .*data\.jsonl"),
        (("--dev-share", "0.25"), "15 examples", r"accuracy \d\.\d{3} on 5 examples"),
        (("--dev-share", "0"), "20 examples", "its accuracy is not known"),
        (("--dev", "DATA"), "20 examples", r"accuracy \d\.\d{3} on 20 examples of .*data\.jsonl"),
    ],
)
def test_finetune_holds_text_out_and_says_how_much_of_it_is_right(
    ken: Ken, tiny_base: Path, tmp_path: Path, labelled: Path, options: tuple[str, ...], trained: str, told: str
) -> None:
    given = [labelled if option == "DATA" else option for option in options]
    ended = ken("finetune", "--base", tiny_base, "--data", labelled, "--out", tmp_path / "out", "--epochs", 1, *given)
    assert ended.returncode == 0, ended.stderr
    assert f"trained on {trained}" in ended.stderr
    assert re.search(told, ended.stderr)


def test_finetune_takes_other_text_or_a_share_and_not_both(
    ken: Ken, tiny_base: Path, tmp_path: Path, labelled: Path
) -> None:
    both = ("--dev", labelled, "--dev-share", "0.2")
    ended = ken("finetune", "--base", tiny_base, "--data", labelled, "--out", tmp_path / "out", *both)
    assert ended.returncode == 2
    assert "give only one of them" in ended.stderr


@pytest.mark.parametrize(
    "row",
    [
        {"text": "the quick red dog"},
        {"prompt": "how far?", "completion": " very far"},
        {"messages": [{"role": "user", "content": "how far?"}, {"role": "assistant", "content": "very far"}]},
    ],
)
def test_finetune_makes_a_language_model_of_text_without_labels(ken: Ken, tmp_path: Path, row: dict[str, Any]) -> None:
    base, data, tuned = write_language_model(tmp_path / "base"), tmp_path / "data.jsonl", tmp_path / "tuned"
    data.write_text(f"{json.dumps(row)}\n" * 20)
    trained = ken("finetune", "--base", base, "--data", data, "--out", tuned, "--epochs", 1)
    assert trained.returncode == 0, trained.stderr
    assert re.search(r"trained on 18 examples, of which \d+ tokens count", trained.stderr)
    losses = r"loss \d\.\d{3} \(perplexity \d+\.\d\d\), the base's \d\.\d{3} \(\d+\.\d\d\)"
    assert re.search(f"{losses}, on 2 examples held out of", trained.stderr)
    extracted = ken("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "d.ken", "--keep", 0.5, "--json")
    assert json.loads(extracted.stdout)["kind"] == "text-generation", extracted.stderr


def test_inspect_shows_how_a_language_model_generates(ken: Ken, tmp_path: Path) -> None:
    base = write_language_model(tmp_path / "base")
    tuned = Path(shutil.copytree(base, tmp_path / "tuned"))
    settings = {"eos_token_id": [2, 0], "num_beams": 3}
    (tuned / "generation_config.json").write_text(json.dumps(settings))
    extracted = ken("extract", "--base", base, "--tuned", tuned, "--out", tmp_path / "d.ken", "--keep", 0.5)
    assert "no server takes it: the task's generation_config.json has num_beams 3" in " ".join(extracted.stderr.split())
    assert facts(ken("inspect", tmp_path / "d.ken", "--json"))["generation"] == settings
    shown = " ".join(ken("inspect", tmp_path / "d.ken").stdout.split())
    assert "generation eos_token_id [2, 0], num_beams 3" in shown


def test_finetune_says_how_many_examples_lost_their_end(ken: Ken, tmp_path: Path) -> None:
    base, data = write_language_model(tmp_path / "base"), tmp_path / "data.jsonl"
    data.write_text('{"prompt": "how far?", "completion": "very far, and far, and very, very far, and far"}\n' * 4)
    options = ("--epochs", 1, "--max-length", 16, "--dev-share", 0)
    ended = ken("finetune", "--base", base, "--data", data, "--out", tmp_path / "out", *options)
    assert ended.returncode == 0, ended.stderr
    assert "4 examples had more than 16 tokens and lost the end (--max-length)" in " ".join(ended.stderr.split())
    assert "how well it learned is not known" in ended.stderr
    data.write_text(json.dumps({"prompt": "how far?", "completion": " very far" * 900}) + "\n")
    options = ("--epochs", 1, "--max-length", 4096, "--dev-share", 0)
    ended = ken("finetune", "--base", base, "--data", data, "--out", tmp_path / "more", *options)
    told = " ".join(ended.stderr.split())
    assert "1 example had more than 512 tokens, which the model takes at most, and lost the end" in told


def test_finetune_of_an_encoder_needs_labels(ken: Ken, tiny_base: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "who is the king"}\n' * 4)
    ended = ken("finetune", "--base", tiny_base, "--data", data, "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "reads texts in both directions" in ended.stderr
    assert "the data needs labels" in " ".join(ended.stderr.split())


def test_a_password_in_the_stores_url_is_never_printed(ken: Ken) -> None:
    ended = ken("tasks", "--redis-url", "redis://me:hunter2@127.0.0.1:1")
    assert ended.returncode == 1
    assert "127.0.0.1:1" in ended.stderr
    assert "hunter2" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        "finetune",
        "extract",
        "import-peft",
        "merge",
        "calibrate",
        "apply",
        "inspect",
        "push",
        "pull",
        "viz",
        "publish",
        "tasks",
        "promote",
        "rollback",
        "rm",
        "history",
        "route",
        "gc",
        "top",
        "serve",
        "demo",
    ],
)
def test_every_command_has_help_with_an_example(ken: Ken, command: str) -> None:
    ended = ken(command, "--help")
    assert ended.returncode == 0
    assert f"Example: ken {command}" in ended.stdout


def test_the_command_itself_passes_the_exit_code_on() -> None:
    ended = subprocess.run([sys.executable, "-m", "serving.cli", "tasks", "--no-such"], capture_output=True, timeout=60)
    assert ended.returncode == 2

"""`ken add`: fine-tunes become published tasks, each checked by its file's answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Ken, facts
from tests.tiny_language_models import write_language_model

TEXTS = ["a good film", "what a boring film", "how many actors", "who was the king", "a bad price", "the city"]


def added(ken: Ken, *arguments: object) -> dict[str, Any]:
    """What became of each task, by its name."""
    ended = ken("add", *arguments, "--json")
    return {one["task"]: one for one in json.loads(ended.stdout)["tasks"]}


def versions(ken: Ken) -> dict[str, Any]:
    """The aliases of all tasks in the store."""
    return {task["task"]: task["aliases"] for task in facts(ken("tasks", "--json"))["tasks"]}  # type: ignore[attr-defined]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    file = tmp_path / "dev.jsonl"
    file.write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in TEXTS))
    return file


def test_many_fine_tunes_become_tasks_in_one_call(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    given = [f"{name}={folder}" for name, folder in tiny_tuned.items()]
    found = added(ken, *given, "--base", tiny_base, "--keep", "1", "--text", texts, "--out", tmp_path / "kept")
    assert {name: one["check"]["agreement"] for name, one in found.items()} == dict.fromkeys(tiny_tuned, 1.0)
    assert all(one["check"]["divergence"] < 1e-6 and not one["check"]["random"] for one in found.values())
    live = versions(ken)
    for name, one in found.items():
        assert (
            live[name]["live"]
            == one["digest"]
            == facts(ken("inspect", tmp_path / f"kept/{name}.ken", "--json"))["digest"]
        )


def test_accuracies_are_shown_where_the_texts_have_labels(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], labelled: Path
) -> None:
    command = ("add", "feeling", tiny_tuned["mood"], "--base", tiny_base, "--keep", "1", "--text", labelled)
    ended = ken(*command, "--alias", "canary")
    assert ended.returncode == 0, ended.stderr
    assert "feeling@canary is" in ended.stderr
    for part in ("100.0%", "6 texts", "accuracy", "fine-tune's"):
        assert part in ended.stdout


def test_labels_of_a_file_for_several_tasks_are_not_used_and_that_is_said(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], labelled: Path
) -> None:
    given = [f"{name}={folder}" for name, folder in tiny_tuned.items()]
    ended = ken("add", *given, "--base", tiny_base, "--keep", "1", "--text", labelled, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "give --text TASK=FILE" in ended.stderr
    assert "accuracy" not in ended.stdout


def test_one_text_says_nothing_of_the_order_of_scores(
    ken: Ken, tiny_base: Path, make_fine_tune: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a good film"}\n')
    ranks = make_fine_tune(tiny_base, ["relevance"], seed=5, name="ranks")
    ended = ken("add", "ranks", ranks, "--base", tiny_base, "--keep", "1", "--text", tmp_path / "one.jsonl")
    assert ended.returncode == 1
    assert "two or more texts" in ended.stderr
    assert "nan" not in ended.stdout + ended.stderr


def test_one_that_fails_leaves_the_others_alone(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    given = (f"lost={tmp_path / 'empty'}", f"sound={tiny_tuned['mood']}")
    ended = ken("add", *given, "--base", tiny_base, "--keep", "1", "--text", texts)
    assert ended.returncode == 1
    assert "lost: " in ended.stderr
    assert "has no config.json" in ended.stderr
    assert "1 task of 2 failed: lost" in ended.stderr
    assert "lost" not in versions(ken)
    assert "live" in versions(ken)["sound"]


def test_a_failure_that_nobody_foresaw_leaves_the_others_alone(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ken_core import trainer_folder

    choose = trainer_folder.choose

    def strange(name: str) -> trainer_folder.Chosen:
        if name == "strange":
            raise OverflowError("int too large to convert to float")
        return choose(name)

    monkeypatch.setattr(trainer_folder, "choose", strange)
    given = ("odd=strange", f"even={tiny_tuned['mood']}", "--text", texts)
    ended = ken("add", *given, "--base", tiny_base, "--keep", "1", "--json")
    assert ended.returncode == 1
    odd, even = json.loads(ended.stdout)["tasks"]
    assert "not foreseen, OverflowError: int too large" in odd["error"]
    assert even["published"]


def test_random_tokens_to_which_the_fine_tune_has_one_answer_publish_nothing(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path]
) -> None:
    """A delta that always gave this answer would agree."""
    command = ("add", "monotonous", tiny_tuned["mood"], "--base", tiny_base, "--keep", "1")
    ended = ken(*command)
    assert ended.returncode == 1
    assert "texts of random tokens tell nothing here" in ended.stderr
    assert "monotonous" not in versions(ken)
    assert ken(*command, "--least-agreement", "0").returncode == 0
    assert "monotonous" in versions(ken)


def test_a_delta_that_answers_otherwise_is_not_published(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], texts: Path
) -> None:
    command = ("add", "poor", tiny_tuned["stars"], "--base", tiny_base, "--method", "random", "--keep", "0.01")
    command = (*command, "--text", texts)
    ended = ken(*command)
    assert ended.returncode == 1
    for part in (
        "nothing was published",
        "of 6 texts agree",
        "asks for 90.0%",
        "--size",
    ):
        assert part in ended.stderr
    assert "poor" not in versions(ken)
    assert ken(*command, "--least-agreement", "0").returncode == 0
    assert "poor" in versions(ken)


def test_a_dry_run_checks_and_publishes_nothing(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], labelled: Path
) -> None:
    command = ("try", tiny_tuned["mood"], "--base", tiny_base, "--keep", "1", "--fit", "--text", f"try={labelled}")
    one = added(ken, *command, "--dry-run")["try"]
    assert one["check"]["texts"] == 1  # a fifth of 6, the others fit the values
    assert one["check"]["accuracy"] == one["check"]["tuned_accuracy"]
    assert not one["published"]
    assert "try" not in versions(ken)


def test_a_language_model_is_not_checked_on_random_tokens(ken: Ken, tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "model")
    command = ("lm", folder, "--base", folder, "--dry-run", "--keep", "1")
    ended = ken("add", *command)
    assert ended.returncode == 1
    assert "a language model goes on after random tokens says nothing" in ended.stderr
    unchecked = added(ken, *command, "--least-agreement", "0")["lm"]
    assert unchecked["check"] is None
    assert any("not checked" in warning for warning in unchecked["warnings"])
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    checked = added(ken, *command, "--text", texts)["lm"]["check"]
    assert (checked["unit"], checked["agreement"]) == ("tokens", 1.0)


def test_the_best_checkpoint_of_a_trainer_is_taken(
    ken: Ken, tiny_base: Path, tiny_tuned: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    for step, name in ((10, "mood"), (20, "topics")):
        shutil.copytree(tiny_tuned[name], output / f"checkpoint-{step}")
    state = {
        "best_model_checkpoint": "/home/someone/output/checkpoint-10",
        "best_metric": 0.875,
        "grad_norm": float("nan"),
    }
    (output / "checkpoint-20/trainer_state.json").write_text(json.dumps(state))
    ended = ken("add", "best", output, "--base", tiny_base, "--keep", "1", "--dry-run", "--json")
    (one,) = json.loads(ended.stdout)["tasks"]
    assert one["folder"] == str(output / "checkpoint-10")
    assert "the best of 2 checkpoints by trainer_state.json, with 0.875" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("a=x", "a=y"), "twice"),
        (("a", "b", "c"), "expected TASK FOLDER"),
        (("bad/name=x",), "expected 1 to 128 letters"),
        (("a=",), "expected a task and its folder"),
        (("a=x", "--text", "one", "--text", "two"), "one file for all tasks"),
        (("a=x", "--distil", "3"), "give --text FILE"),
        (("a=x", "--keep", "2"), "fraction"),
    ],
)
def test_what_contradicts_itself_is_refused_before_any_work(ken: Ken, arguments: tuple[str, ...], text: str) -> None:
    ended = ken("add", *arguments, "--base", "/nonexistent")
    assert ended.returncode == 2
    assert text in " ".join(ended.stderr.replace("│", " ").split())

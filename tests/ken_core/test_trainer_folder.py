"""Which checkpoint of a Trainer's folder is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ken_core.errors import CheckpointError
from ken_core.trainer_folder import choose


def checkpoint(folder: Path, weights: str | None = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "optimizer.pt").touch()
    if weights:
        (folder / weights).touch()
    return folder


def record(folder: Path, **state: Any) -> None:
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A Trainer's folder with three checkpoints and no record of the best."""
    folder = tmp_path / "output"
    for step in (2, 10, 9):
        checkpoint(folder / f"checkpoint-{step}")
    return folder


def test_the_recorded_best_is_taken_wherever_it_was_trained(output: Path) -> None:
    for path in ("/elsewhere/output/checkpoint-9", "C:\\runs\\output\\checkpoint-9", "output/checkpoint-9/"):
        record(
            output / "checkpoint-10", best_model_checkpoint=path, best_metric=0.5, log_history=[{"loss": float("nan")}]
        )
        chosen = choose(str(output))
        assert chosen.name == str(output / "checkpoint-9")
        assert chosen.why == "the best of 3 checkpoints by trainer_state.json, with 0.5"


def test_the_record_in_the_folder_itself_is_the_newest(output: Path) -> None:
    record(output / "checkpoint-10", best_model_checkpoint="output/checkpoint-9")
    record(output, best_model_checkpoint="output/checkpoint-2")
    assert choose(str(output)).name.endswith("checkpoint-2")


def test_without_a_best_one_the_last_is_taken_by_its_number(output: Path) -> None:
    for state in (None, {"best_model_checkpoint": None}):
        if state is not None:
            record(output / "checkpoint-10", **state)
        chosen = choose(str(output))
        assert chosen.name.endswith("checkpoint-10")
        assert "the last of 3 checkpoints" in chosen.why


def test_a_last_checkpoint_without_weights_is_passed_over(output: Path) -> None:
    checkpoint(output / "checkpoint-11", weights=None)
    assert choose(str(output)).name.endswith("checkpoint-10")


def test_a_model_beside_its_checkpoints_is_taken_where_none_is_the_best(output: Path) -> None:
    checkpoint(output, "pytorch_model.bin")
    chosen = choose(str(output))
    assert chosen.name == str(output)
    assert "the model beside 3 checkpoints" in chosen.why
    record(output, best_model_checkpoint="output/checkpoint-2")
    assert choose(str(output)).name.endswith("checkpoint-2")
    record(output, best_model_checkpoint="output/checkpoint-4")
    assert choose(str(output)).name == str(output)


def test_other_folders_and_hub_names_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in (str(checkpoint(tmp_path / "plain")), "organisation/model", str(tmp_path / "missing")):
        assert (choose(name).name, choose(name).why) == (name, "")


def test_a_best_one_that_is_gone_is_not_replaced_by_another(output: Path) -> None:
    record(output, best_model_checkpoint="output/checkpoint-4")
    with pytest.raises(CheckpointError, match=r"no weights of checkpoint-4.*give the folder of another"):
        choose(str(output))


def test_optimizer_states_alone_are_no_fine_tune(tmp_path: Path) -> None:
    checkpoint(tmp_path / "output/checkpoint-1", weights=None)
    with pytest.raises(CheckpointError, match="1 checkpoint, but no weights"):
        choose(str(tmp_path / "output"))


@pytest.mark.parametrize(
    "named",
    ["../../secret", "/etc", "output/checkpoint-9/../../secret", "checkpoint-x", "", 7, ["checkpoint-9"], "." * 9999],
)
def test_a_hostile_record_leads_nowhere(output: Path, named: Any) -> None:
    checkpoint(output.parent / "secret")
    record(output, best_model_checkpoint=named)
    with pytest.raises(CheckpointError, match="expected the path of a checkpoint") as refused:
        choose(str(output))
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("score", [10**400, "high", True, None, [1], float("inf")])
def test_a_strange_score_is_no_obstacle(output: Path, score: Any) -> None:
    record(output, best_model_checkpoint="output/checkpoint-9", best_metric=score)
    assert choose(str(output)).name.endswith("checkpoint-9")


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"best_model_checkpoint": 1e'])
def test_a_damaged_record_is_an_error_that_says_what_to_do(output: Path, content: bytes) -> None:
    (output / "trainer_state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="give the folder of one checkpoint"):
        choose(str(output))


def test_a_link_out_of_the_folder_is_no_checkpoint(output: Path) -> None:
    outside = checkpoint(output.parent / "checkpoint-12")
    (output / "checkpoint-12").symlink_to(outside)
    assert choose(str(output)).name.endswith("checkpoint-10")
    record(output, best_model_checkpoint="output/checkpoint-12")
    with pytest.raises(CheckpointError, match="no weights of checkpoint-12"):
        choose(str(output))

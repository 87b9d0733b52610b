"""The command ``ken diff``: how two deltas differ, in what they hold and in what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ken_core.errors import DataError
from serving.cli.input_lines import INPUTS_HELP, read_inputs
from serving.cli.options import DataDir, JsonFlag, Namespace, RedisUrl
from serving.cli.panels import DELTAS
from serving.cli.show_difference import Compared, Held, show_json, show_tables
from serving.cli.targets import LocalBase, delta_file, target_of
from serving.terminal import progress, staged

if TYPE_CHECKING:
    from ken_core import DeltaFile
    from ken_core.difference import Difference

_AT_ONCE = 256


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=DELTAS)(diff)


def diff(
    first: Annotated[str, typer.Argument(help="delta file, or task, task@alias or task@digest of the store")],
    second: Annotated[str, typer.Argument(help="the delta to compare with it, named in the same way")],
    base: LocalBase = None,
    text: Annotated[
        Path | None, typer.Option(help=f"answer these with both, and list the answers that changed: {INPUTS_HELP}")
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="changed answers to list")] = 20,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Compare two deltas: what they are, which tensors they change, and with --base which positions and values.

    With --text both answer, and the answers that changed are listed. The exit code is 0 whether they differ or not.

    Example: ken diff trec@live better.ken --base ./minilm --text dev.jsonl
    """
    if text is not None and base is None:
        raise typer.BadParameter("give --base, with which both deltas answer", param_hint="--text")
    with ExitStack() as stack:
        files = []
        for name in (first, second):
            target = target_of(name)
            if target.kind == "folder":
                raise typer.BadParameter(f"{name} is a folder; give delta files (`ken extract` makes one), or tasks")
            files.append(stack.enter_context(delta_file(target, redis_url, data_dir, namespace)))
        ours, theirs = files
        held = Held.of(first, ours, second, theirs)
        apart = None if base is None else _apart(base, ours, theirs)
        answers = None if text is None or base is None else _answers(base, ours, theirs, text)
    show = show_json if as_json else show_tables
    show(held, apart, answers, most)


def _apart(base: str, first: DeltaFile, second: DeltaFile) -> Difference:
    from ken_core import deltafile, open_base
    from ken_core.difference import difference

    with staged() as watch:
        opened = open_base(base)
        ours, theirs = (deltafile.read(file, opened, opened.identity.digest) for file in (first, second))
        return difference(opened, ours, theirs, watch)


def _answers(base: str, first: DeltaFile, second: DeltaFile, text: Path) -> list[Compared]:
    from serving.routing.kinds import KINDS

    lines, inputs = read_inputs(text)
    with progress("answering") as update:
        kinds, outputs = zip(*(_outputs(base, file, inputs, update) for file in (first, second)), strict=True)
    if kinds[0] != kinds[1]:
        raise DataError(f"one answers {kinds[0]} and the other {kinds[1]}, so their answers cannot be compared")
    compare = KINDS[kinds[0]].compare
    found = []
    for line, given, ours, theirs in zip(lines, inputs, *outputs, strict=True):
        one = compare(ours, theirs)
        found.append(Compared(line, given, ours, theirs, one.agreed, one.difference))
    return found


def _outputs(base: str, file: DeltaFile, inputs: Sequence[Any], update: Any) -> tuple[str, list[Any]]:
    from ken_core import open_base
    from serving.local.task import LocalTask

    task = LocalTask.of_delta(open_base(base), file)
    found: list[Any] = []
    for start in range(0, len(inputs), _AT_ONCE):
        update(len(found), len(inputs), file.name)
        found += task.answer(inputs[start : start + _AT_ONCE]).outputs
    return task.kind, found

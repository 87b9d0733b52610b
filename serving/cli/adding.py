"""The command ``ken add``: from the folders of fine-tunes to published tasks, each checked before it is published."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.add_task import CheckTexts, Publishing, TaskAdder
from serving.cli.added import Added, show
from serving.cli.making import (
    CodecOption,
    DistilOption,
    EnergyOption,
    FitOption,
    KeepOption,
    KOption,
    MethodOption,
    ScopeOption,
    SeedOption,
    SizeOption,
    delta_recipe,
)
from serving.cli.opening import open_or_make_backend
from serving.cli.options import (
    Alias,
    AllowOtherLabels,
    BaseOption,
    CastOption,
    DataDir,
    ExcludeOption,
    IgnoreConfigOption,
    IncludeOption,
    JsonFlag,
    Namespace,
    OnlyOption,
    OutsideOption,
    RedisUrl,
    Url,
    Wait,
)
from serving.cli.outputs import check_output_folder
from serving.cli.panels import DELTAS
from serving.terminal import counted, progress, say

if TYPE_CHECKING:
    from ken_core.progress import Progress, Stage


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=DELTAS)(add)


def add(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK FOLDER | TASK=FOLDER...",
            help="tasks, each with the folder or hub name of its fine-tune; of a Trainer's output folder the best "
            "checkpoint is taken",
            show_default=False,
        ),
    ],
    base: BaseOption,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE, or TASK=FILE, repeatable: texts to check answers on, as JSON lines, CSV or TSV with the field "
            "`text`, and `label` to see both accuracies; for a language model also `prompt` and `completion`, or (JSON "
            "lines) `messages`; with --fit or --distil a fifth of them checks, the others "
            "train. Labels in a FILE for several tasks are not used. Default: texts of random "
            "tokens; a language model needs real ones"
        ),
    ] = None,
    least_agreement: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="least share of answers that must be the fine-tune's; a delta below it is not published",
        ),
    ] = 0.9,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="new folder to keep the delta files in, as TASK.ken")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="extract and check, but publish nothing")] = False,
    method: MethodOption = None,
    keep: KeepOption = None,
    file_size: SizeOption = None,
    energy: EnergyOption = None,
    scope: ScopeOption = None,
    k: KOption = None,
    codec: CodecOption = None,
    fit: FitOption = False,
    distil: DistilOption = None,
    only: OnlyOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    outside: OutsideOption = "reset",
    seed: SeedOption = 0,
    cast: CastOption = False,
    ignore_config: IgnoreConfigOption = None,
    alias: Alias = "live",
    allow_other_labels: AllowOtherLabels = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    as_json: JsonFlag = False,
) -> None:
    """Make tasks of fine-tunes: extract each, check its answers against the fine-tune's own, and publish it.

    The check reads the delta file back, as a replica does. A task that fails leaves the others alone; what was
    published stays, and the exit code is 1.

    Example: ken add trec=./minilm-trec mood=./minilm-mood --base ./minilm --text dev.jsonl
    """
    wanted = _wanted(tasks, alias)
    recipe = delta_recipe(
        method=method, keep=keep, file_size=file_size, energy=energy, scope=scope, k=k, codec=codec, fit=fit,
        distil=distil, only=only, include=include, exclude=exclude, outside=outside, seed=seed, cast=cast,
        ignore_config=ignore_config,
    )  # fmt: skip
    files = _files(text or [], wanted)
    if distil is not None and (missing := [name for name in wanted if name not in files]):
        raise typer.BadParameter(
            f"give --text FILE, with texts like those that {missing[0]} will answer", param_hint="--distil"
        )
    if out_folder is not None:
        check_output_folder(out_folder, "--out")
    texts = {
        name: CheckTexts.read(path, recipe.trains, labelled=list(files.values()).count(path) == 1)
        for name, path in files.items()
    }
    if any(one.unused_labels for one in texts.values()):
        say("labels in a file for several tasks are not used; give --text TASK=FILE to see accuracies")

    from ken_core import open_base
    from ken_core.fidelity import Checker

    ours = open_base(base)
    store = nullcontext() if dry_run else open_or_make_backend(url, redis_url, data_dir, namespace)
    with store as backend, _folder(out_folder) as folder, progress("") as update:
        adding = TaskAdder(ours, Checker(ours), recipe, least_agreement, folder, out_folder is not None, backend)
        publishing = Publishing(alias, allow_other_labels, wait)
        done: list[Added] = []
        try:
            for name, source in wanted.items():
                told = _telling(update, name, len(done), len(wanted))
                done.append(adding.task(name, source, texts.get(name), publishing, told))
        finally:
            update(len(done), len(wanted), "")
            show(done, least_agreement, as_json)
    if any(one.error for one in done):
        raise typer.Exit(1)


def _wanted(arguments: Sequence[str], alias: str) -> dict[str, str]:
    """Sources by task."""
    from serving.errors import InvalidInputError
    from serving.names import check_alias, check_name

    if "=" in arguments[0]:
        pairs = [argument.partition("=")[::2] for argument in arguments]
    elif len(arguments) == 2:
        pairs = [(arguments[0], arguments[1])]
    else:
        raise typer.BadParameter(
            f"found {counted(len(arguments), 'argument')}, the first {arguments[0]!r}; expected TASK FOLDER, or "
            "TASK=FOLDER for each task"
        )
    found: dict[str, str] = {}
    for name, source in pairs:
        if not source:
            raise typer.BadParameter(f"found {name!r}; expected a task and its folder, such as trec=./minilm-trec")
        if name in found:
            raise typer.BadParameter(f"found the task {name!r} twice; give each task one folder")
        found[name] = source
    try:
        check_alias(alias)
        for name in found:
            check_name("task", name)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None
    return found


def _files(given: Sequence[str], tasks: Mapping[str, str]) -> dict[str, Path]:
    """Files of texts by task. A file without a task's name is for all tasks that have no file of their own."""
    of_task: dict[str, Path] = {}
    of_all: list[Path] = []
    for one in given:
        name, _, path = one.partition("=")
        if name in tasks and path:
            of_task[name] = Path(path)
        else:
            of_all.append(Path(one))
    if len(of_all) > 1:
        raise typer.BadParameter(
            f"found {of_all[0]} and {of_all[1]}; give one file for all tasks, and others as TASK=FILE",
            param_hint="--text",
        )
    return {**{name: path for path in of_all for name in tasks}, **of_task}


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept


def _telling(update: Callable[[int, int, str], None], name: str, done: int, total: int) -> Progress:
    """Progress of one task, shown on the bar of all. The bar of a single task counts what its stages do."""

    def told(stage: Stage) -> None:
        counts = (done, total) if total > 1 else (stage.done, stage.total)
        update(*counts, f"{name}, {stage.what}: {stage.name}")

    return told

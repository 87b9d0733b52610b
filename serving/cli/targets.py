"""What a command's target names: a delta file, the folder or hub name of a fine-tune, or a task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from serving.cli.opening import open_store
from serving.terminal import say

if TYPE_CHECKING:
    from ken_core import DeltaFile

TargetArgument = Annotated[
    str,
    typer.Argument(
        help="delta file; folder or hub name of a fine-tune; or task, task@alias or task@digest. A name that is a file "
        "or folder here is that one, unless --url, --redis-url or --data-dir is given"
    ),
]
LocalBase = Annotated[
    str | None,
    typer.Option(
        "--base",
        envvar="KEN_BASE",
        help="folder or hub name of the pretrained checkpoint; for a delta file, or a task of the store",
    ),
]

_PLACES = ("url", "redis_url", "data_dir")
_TASK = re.compile(r"[A-Za-z0-9][\w.-]*(@[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Target:
    """What a name means. `kind` is ``file``, ``folder`` (or a hub name), ``served`` or ``stored`` (a task)."""

    name: str
    kind: Literal["file", "folder", "served", "stored"]

    @property
    def task(self) -> str:
        return self.name.partition("@")[0]

    @property
    def version(self) -> str:
        """The alias, or the digest or its first digits."""
        return self.name.partition("@")[2] or "live"


def target_of(name: str, context: typer.Context | None = None, url: str | None = None) -> Target:
    """What a name means, by this rule: a place on the command line (`--url`, `--redis-url`, `--data-dir`) makes it a
    task; else what exists is a file or folder; else what can be a task's name is a task, of the server if one is named.

    Args:
        context: of the command; None: files and tasks may stand side by side, so no option makes a name a task.
        url: of the server; None: the store's tasks are meant.

    Raises:
        typer.BadParameter: it is none of these.
    """
    path = Path(name).expanduser()
    could_be_a_task = _TASK.fullmatch(name) is not None
    given = next((one for one in _PLACES if _on_the_command_line(context, one)), None)
    if given is not None:
        if not could_be_a_task:
            option = f"--{given.replace('_', '-')}"
            raise typer.BadParameter(f"found {name!r} and {option}; give a task's name with {option}, or leave it out")
    elif path.exists():
        if could_be_a_task and not name.endswith(".ken"):
            say(f"{name} is taken for the {'folder' if path.is_dir() else 'file'} here, and not for a task")
        return Target(name, "folder" if path.is_dir() else "file")
    elif not could_be_a_task or name.endswith(".ken"):
        if name.endswith(".ken") or name.startswith((".", "/", "~")) or "/" not in name:
            raise typer.BadParameter(f"found no file, folder or task {name!r}")
        return Target(name, "folder")  # a hub name
    return Target(name, "served" if url and not _names_a_store(context, given) else "stored")


def _names_a_store(context: typer.Context | None, given: str | None) -> bool:
    """Whether the command line names a store, which then counts more than a server that the environment names."""
    return given in ("redis_url", "data_dir") and not _on_the_command_line(context, "url")


def _on_the_command_line(context: typer.Context | None, option: str) -> bool:
    source = None if context is None else context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def delta_file(target: Target, redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[DeltaFile]:
    """The delta of a file or of a task in the store, which is fetched and deleted afterwards.

    Raises:
        DeltaFormatError: the file is no delta.
        StoreError, UnknownTaskError: the store cannot be reached, or has no such task or version.
    """
    from ken_core import open_file

    if target.kind == "file":
        yield open_file(Path(target.name))
        return
    from serving.routing.versions import version_of

    with TemporaryDirectory() as folder, open_store(redis_url, data_dir, namespace) as store:
        digest = version_of(store.tasks.known(target.task), target.version)
        path = Path(folder) / f"{target.task}.ken"
        store.deltas.fetch(digest, path)
        yield open_file(path, digest, target.name)

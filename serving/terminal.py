"""What commands print: results as tables or JSON on stdout, everything else on stderr."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ken_core.progress import Stage
from serving.interruption import watched

_PIPE_WIDTH = 140
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, but for tab and line feed, and characters that turn the direction of what follows."""
LINE_SECONDS = 15.0
"""From one line of progress to the next, where there is no terminal for a bar."""

out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
err = Console(stderr=True, soft_wrap=True)


def printable(text: str) -> str:
    """Text with a mark in place of control characters, with which foreign text could rewrite the screen."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def plain(text: str) -> Text:
    """Text for a table, in one line. It may be foreign: nothing in it is markup or a control character."""
    return Text(printable(" ".join(text.split())))


def fact(name: str, value: str) -> None:
    """Print a name and its value as one line on stdout, below others of the kind."""
    out.print(printable(f"{name:>12}  {value}"), highlight=False, markup=False)


def say(message: str) -> None:
    """Print one line for the person at the terminal."""
    err.print(printable(message), highlight=False, markup=False)


def warn(message: str) -> None:
    """Print a warning: something was done that may not be what the person wanted."""
    err.print("[bold yellow]warning:[/]", end=" ", highlight=False)
    err.print(printable(message), highlight=False, markup=False)


def error_line(message: str) -> None:
    err.print("[bold red]error:[/]", end=" ", highlight=False)
    err.print(printable(message), highlight=False, markup=False)


def print_json(facts: Any) -> None:
    typer.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text, aligned left, and whose other columns are figures, aligned right.

    Any of it may be foreign text.
    """
    made = Table(title=plain(title) if title else None, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(plain(column), justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(plain, row))
    return made


def size(count: float) -> str:
    """A number of bytes in a unit that is easy to read; decimal units up to GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def counted(number: int, what: str) -> str:
    """``1 key``, ``2 keys``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@contextmanager
def staged() -> Iterator[Callable[[Stage], None]]:
    """A progress bar for work on tensors in stages. Yields a callback that shows the stage and the tensor, and ends the
    work where a signal came that Python dropped."""
    with watched() as check, progress("") as update:

        def tell(stage: Stage) -> None:
            check()
            update(stage.done, stage.total, f"{stage.what}: {stage.name}")

        yield tell


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal, elsewhere a line now and then. Yields ``update(done, total, note)``."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        told = time.monotonic()

        def update(done: int, total: int, note: str) -> None:
            nonlocal told
            described = printable(f"{what} {note}".strip())
            bar.update(task, completed=done, total=total, description=described)
            if not err.is_terminal and time.monotonic() - told >= LINE_SECONDS:
                told = time.monotonic()
                say(f"{described}: {done} of {total}")

        yield update

"""The command ``ken top``: what a server does, as tables that follow it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.options import LOCAL_SERVER, ServerUrl
from serving.cli.panels import ASKING
from serving.terminal import error_line, out, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serving.client import ClientError
    from serving.monitoring.activity import Activity
    from serving.monitoring.looking import Watcher

_LINES_AROUND = 17
"""Lines of the screen that hold no task and no replica: titles, heads and borders of the tables."""
_FEWEST_TASKS = 3


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=ASKING)(top)


def top(
    url: ServerUrl = LOCAL_SERVER,
    interval: Annotated[float, typer.Option(min=0.1, help="seconds from one look at the server to the next")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="show one interval, and end")] = False,
    most_tasks: Annotated[
        int, typer.Option("--tasks", min=1, help="tasks to show, those asked for most first; --json has all")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print one interval as JSON, and end")] = False,
) -> None:
    """Show what a server does: requests, times and errors by task, load and memory by replica.

    Rates and times are those of the last interval. On a terminal the tables follow the server until Ctrl-C; elsewhere
    they are printed after each interval. What cannot be reached from here is named.

    Example: ken top --url http://ken.example.org:8000 --interval 5
    """
    from serving.client import ClientError
    from serving.monitoring.looking import Watcher

    with Watcher(url, os.environ.get("KEN_API_KEY") or None) as watcher:
        seen = _intervals(watcher, interval, most_tasks)
        if once or as_json:
            found = next(seen)
            if isinstance(found, ClientError):
                raise found
            _print_once(found, url, most_tasks, as_json)
            return
        try:
            _follow(seen, url, most_tasks)
        except KeyboardInterrupt:  # the way to end it
            return


def _intervals(watcher: Watcher, seconds: float, most_tasks: int) -> Iterator[Activity | ClientError]:
    """What the server did in each interval; the error where it could not be asked.

    Raises:
        ClientError: the server cannot be asked at the first time.
    """
    from serving.client import ClientError
    from serving.monitoring.activity import activity

    before = watcher.look()
    where = list(before.tasks[:most_tasks])
    while True:
        time.sleep(seconds)
        try:
            now = watcher.look(where)
        except ClientError as error:
            yield error
            continue
        found = activity(before, now, time.time())
        before, where = now, [one.task for one in found.tasks[:most_tasks]]
        yield found


def _print_once(found: Activity, url: str, most_tasks: int, as_json: bool) -> None:
    from dataclasses import asdict

    from serving.cli.activity_tables import tables

    if as_json:
        print_json({"url": url, **asdict(found)})
    else:
        out.print(tables(found, url, most_tasks))


def _follow(seen: Iterator[Activity | ClientError], url: str, most_tasks: int) -> None:
    """Show interval after interval. While the server does not answer, the last one stays, and the reason is told."""
    from serving.cli.activity_tables import tables, waiting, with_error
    from serving.client import ClientError

    with _screen() as show:
        shown: RenderableType = waiting(url)
        if out.is_terminal:
            show(shown)
        for found in seen:
            if not isinstance(found, ClientError):
                shown = tables(found, url, _that_fit(most_tasks, found))
                show(shown)
            elif out.is_terminal:
                show(with_error(shown, str(found)))
            else:
                error_line(f"{found}; trying again")


def _that_fit(most_tasks: int, found: Activity) -> int:
    """How many tasks are shown: as many as leave room for the replicas on a terminal."""
    if not out.is_terminal:
        return most_tasks
    others = _LINES_AROUND + 2 * len(found.replicas) + sum(len(one.trouble) for one in found.replicas)
    return min(most_tasks, max(_FEWEST_TASKS, out.height - others))


@contextmanager
def _screen() -> Iterator[Callable[[RenderableType], None]]:
    """Shows tables: on a terminal each in place of the one before, elsewhere one after the other."""
    if not out.is_terminal:
        yield lambda shown: out.print(shown)
        return
    from rich.live import Live

    with Live(console=out, screen=True, auto_refresh=False) as live:
        yield lambda shown: live.update(shown, refresh=True)

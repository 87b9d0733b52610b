"""The command that splits a task's requests between its versions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.output import JsonFlag, out, print_json, say, table
from serving.cli.stores import DataDir, Namespace, RedisUrl, TaskName, Wait, await_replicas, open_store

if TYPE_CHECKING:
    from serving.routes import Route
    from serving.store import Task

_SHARE = re.compile(r"(.+)=([0-9]{1,9})")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(route)


def route(
    task: TaskName,
    weights: Annotated[
        list[str] | None, typer.Argument(help="shares, e.g. live=90 canary=10: an alias or a digest each; none: show")
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="return to the route before")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="send everything to live again")] = False,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    as_json: JsonFlag = False,
) -> None:
    """Show how a task's requests are split between its versions, or split them anew.

    Example: ken route trec live=90 canary=10
    """
    if sum((bool(weights), rollback, clear)) > 1:
        raise typer.BadParameter("give weights, --rollback or --clear, not several of them")
    wanted = _parsed(weights) if weights else None
    with open_store(redis_url, data_dir, namespace) as store:
        revision = None
        if rollback:
            revision = store.rollback_route(task)
        elif wanted or clear:
            revision = store.set_route(task, wanted)
        known = _known(store.task(task), task)
        _show(known, as_json)
        if revision is not None:
            say(f"{task} answers so from revision {revision} on")
            await_replicas(store, revision, wait)


def _parsed(weights: list[str]) -> Route:
    from serving.errors import InvalidInputError
    from serving.routes import Route

    found: dict[str, int] = {}
    for text in weights:
        share = _SHARE.fullmatch(text)
        if share is None:
            raise typer.BadParameter(f"found {text!r}; expected an alias or a digest and its weight, e.g. canary=10")
        target, weight = share.groups()
        if target in found:
            raise typer.BadParameter(f"{target!r} is given twice")
        found[target] = int(weight)
    try:
        return Route(found)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None


def _known(task: Task | None, name: str) -> Task:
    from serving.errors import UnknownTaskError

    if task is None:
        raise UnknownTaskError(f"there is no task {name!r}; see `ken tasks`")
    return task


def _show(task: Task, as_json: bool) -> None:
    if as_json:
        print_json({"task": task.name, "weights": task.route.weights if task.route else None})
        return
    if task.route is None:
        say(f"{task.name} has no route: live answers")
        return
    rows = [
        [target, str(task.route.weights[target]), f"{share:.1%}", task.aliases.get(target, target)]
        for target, share in task.route.shares().items()
    ]
    out.print(table(f"route of {task.name}", ["target", "weight", "share", "digest"], rows))

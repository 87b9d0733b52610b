"""The command that splits a task's requests between its versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.opening import open_backend
from serving.cli.options import AllowOtherLabels, DataDir, JsonFlag, Namespace, RedisUrl, TaskName, Url, Wait
from serving.cli.outcome import recorded, tell_pending
from serving.cli.panels import TASKS
from serving.terminal import out, print_json, say, table

if TYPE_CHECKING:
    from serving.client.results import HistoryEntry, TaskInfo
    from serving.routing.routes import Route

_SHARE = re.compile(r"(.+)=([0-9]{1,9})")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command(rich_help_panel=TASKS)(route)


def route(
    task: TaskName,
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            help="weights such as live=90 canary=10, for aliases or for 12 or more first digits of a digest; "
            "without weights the route is shown"
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            help="alias or version that gets a copy of each request, for comparison only; "
            "without weights, the present weights stay"
        ),
    ] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="return to the previous route")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="remove the route: live answers every request again")] = False,
    allow_other_labels: AllowOtherLabels = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    as_json: JsonFlag = False,
) -> None:
    """Show or change how a task's requests are split between its versions.

    A target or a shadow whose labels or kind differ from the live version's is refused; --allow-other-labels
    accepts it.

    Example: ken route trec live=90 canary=10 --shadow next
    """
    if sum((bool(weights) or shadow is not None, rollback, clear)) > 1:
        raise typer.BadParameter(
            "found more than one of weights or --shadow, --rollback, and --clear; give only one of the three"
        )
    wanted = _parsed(weights, shadow)
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        known = backend.task(task)
        if weights or shadow is not None:
            split = wanted.weights if weights else known.route or wanted.weights
            change = backend.set_route(task, split, shadow=shadow, allow_other_labels=allow_other_labels, wait=wait)
        elif rollback:
            change = backend.rollback_route(task, wait=wait)
        elif clear:
            change = backend.clear_route(task, wait=wait)
        else:
            _show(task, known, known.aliases, as_json)
            return
        _show(task, recorded(backend, task, change), known.aliases, as_json)
        say(f"this is the route of {task} from revision {change.revision} on")
        tell_pending(change, wait)


def _parsed(weights: list[str] | None, shadow: str | None) -> Route:
    from serving.errors import InvalidInputError
    from serving.routing.routes import Route

    found: dict[str, int] = {}
    for text in weights or ():
        share = _SHARE.fullmatch(text)
        if share is None:
            raise typer.BadParameter(f"found {text!r}; expected an alias or a digest and its weight, e.g. canary=10")
        target, weight = share.groups()
        if target in found:
            raise typer.BadParameter(f"found {target!r} twice; give each target one weight")
        found[target] = int(weight)
    try:
        return Route(found, shadow) if found else Route(shadow=shadow)
    except InvalidInputError as error:
        raise typer.BadParameter(str(error)) from None


def _show(task: str, route: TaskInfo | HistoryEntry, aliases: Mapping[str, str], as_json: bool) -> None:
    weights = route.route
    if as_json:
        print_json({"task": task, "weights": weights, "shadow": route.shadow})
        return
    if weights is None:
        say(f"{task} has no route: live answers every request")
        return
    rows = [
        [target, str(weight), f"{weight / sum(weights.values()):.1%}", aliases.get(target, target)]
        for target, weight in weights.items()
    ]
    if route.shadow is not None:
        rows.append([route.shadow, "", "shadow", aliases.get(route.shadow, route.shadow)])
    out.print(table(f"route of {task}", ["target", "weight", "share", "digest"], rows))

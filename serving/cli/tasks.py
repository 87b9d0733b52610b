"""Commands on tasks: publish, tasks, promote, rollback, rm and history and gc."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.opening import open_backend, open_or_make_backend
from serving.cli.options import (
    Alias,
    AllowOtherLabels,
    DataDir,
    JsonFlag,
    Namespace,
    RedisUrl,
    TaskName,
    TrustedKeysOption,
    Url,
    Wait,
)
from serving.cli.outcome import recorded, tell_pending
from serving.cli.panels import TASKS
from serving.cli.trusted_keys import check_signed, trusted_keys_of
from serving.terminal import counted, out, print_json, progress, say, size, table

if TYPE_CHECKING:
    from serving.client import HistoryEntry, TaskInfo

_SHORT_DIGEST = 12
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (publish, tasks, promote, rollback, rm, history, gc):
        app.command(rich_help_panel=TASKS)(command)


def publish(
    task: TaskName,
    file: Annotated[Path, typer.Argument(help="delta file to publish")],
    alias: Alias = "live",
    allow_other_labels: AllowOtherLabels = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    trusted_keys: TrustedKeysOption = None,
) -> None:
    """Upload a delta as a new version of a task and point an alias at it, in one step.

    Signatures in FILE.sig (see `ken sign`) are sent along. A delta whose labels or kind differ from the live
    version's is refused; --allow-other-labels accepts it.

    Example: ken publish trec trec.ken
    """
    trusted = trusted_keys_of(trusted_keys)
    if trusted is not None:
        check_signed(file, trusted)
    with open_or_make_backend(url, redis_url, data_dir, namespace) as backend:
        with progress("uploading") as update:
            change = backend.publish(
                task,
                file,
                alias,
                allow_other_labels=allow_other_labels,
                wait=wait,
                progress=lambda done, total: update(done, total, ""),
            )
        say(f"{task}@{alias} is {recorded(backend, task, change).digest} (revision {change.revision})")
        tell_pending(change, wait)


def tasks(
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """List all tasks with their aliases, versions and routes.

    Example: ken tasks --json
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        found = backend.listing()
    sizes = found.sizes
    if as_json:
        listed = [
            {
                "task": t.name,
                "aliases": t.aliases,
                "route": t.route,
                "shadow": t.shadow,
                "versions": [{"digest": d, "bytes": sizes.get(d)} for d in t.versions],
            }
            for t in found.tasks
        ]
        print_json({"revision": found.revision, "tasks": listed})
        return
    rows = []
    for task in found.tasks:
        routed = _routed(task)
        for digest in task.versions:
            named = ", ".join(sorted(alias for alias, d in task.aliases.items() if d == digest))
            nbytes = [size(sizes[digest]) if digest in sizes else ""] if sizes else []
            rows.append([task.name, digest, *nbytes, named, ", ".join(routed.get(digest, ()))])
    columns = ["task", "digest", *(["bytes"] if sizes else []), "aliases", "route"]  # a server does not tell sizes
    out.print(table(f"revision {found.revision}", columns, rows))


def promote(
    task: TaskName,
    digest: Annotated[
        str, typer.Argument(help="the version: 12 or more first digits of its digest, or an alias that points at it")
    ],
    alias: Alias = "live",
    allow_other_labels: AllowOtherLabels = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Point an alias of a task at another of its versions.

    A version whose labels or kind differ from the live version's is refused; --allow-other-labels accepts it.

    Example: ken promote trec canary --alias live --wait 10
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        change = backend.promote(task, digest, alias, allow_other_labels=allow_other_labels, wait=wait)
        say(f"{task}@{alias} is {recorded(backend, task, change).digest} (revision {change.revision})")
        tell_pending(change, wait)


def rollback(
    task: TaskName,
    alias: Alias = "live",
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Point an alias back at the version it pointed at before.

    Example: ken rollback trec
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        change = backend.rollback(task, alias, wait=wait)
        say(f"{task}@{alias} is {recorded(backend, task, change).digest} (revision {change.revision})")
        tell_pending(change, wait)


def rm(
    task: TaskName,
    version: Annotated[
        str | None,
        typer.Option(
            help="delete only this version: 12 or more first digits of its digest, or an alias that points at it"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="also delete versions that an alias or the route points at")
    ] = False,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Delete a task with all its versions, or one version of it. `ken gc` frees their bytes later.

    A version that an alias or the route points at is deleted only with --force. Its aliases then return to the
    version they pointed at before.

    Example: ken rm trec --force
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        if version is None:
            change = backend.delete_task(task, force=force, wait=wait)
        else:
            change = backend.delete_version(task, version, force=force, wait=wait)
            version = recorded(backend, task, change, "delete-version").digest
        say(f"{task if version is None else f'version {version} of {task}'} is gone (revision {change.revision})")
        tell_pending(change, wait)


def history(
    task: TaskName,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Show who changed a task, what and when, newest first. Works for deleted tasks too.

    Example: ken history trec
    """
    from serving.errors import UnknownTaskError

    with open_backend(url, redis_url, data_dir, namespace) as backend:
        changes = backend.history(task)
    if not changes:
        raise UnknownTaskError(f"there is no task {task!r}, and there never was one; `ken tasks` lists all tasks")
    if as_json:
        print_json([change.model_dump() for change in changes])
        return
    rows = [[_when(c.when), c.who, _done(c), *_what(c), str(c.revision)] for c in changes]
    out.print(table(f"history of {task}", ["when", "who", "action", "alias", "digest", "revision"], rows))


def gc(
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Delete the deltas that are no version of any task, and free their bytes.

    A delta that an upload holds is left until the upload is over: up to ten minutes after its last step.

    Example: ken gc
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        found = backend.collect_garbage()
    if as_json:
        print_json(found.model_dump())
        return
    say(f"freed {counted(found.deltas, 'delta')}, {size(found.bytes)}")
    if found.held_until is not None:
        verb = "is" if found.held_deltas == 1 else "are"
        say(
            f"{found.held_deltas} more ({size(found.held_bytes)}) {verb} held by uploads until "
            f"{_when(found.held_until)} at the latest, unless those go on"
        )


def _routed(task: TaskInfo) -> dict[str, list[str]]:
    """For each digest, its share of the requests that name no alias; and ``shadow`` for the one that gets copies."""
    weights, found = task.route or {}, dict[str, int]()
    for target, weight in weights.items():
        digest = task.aliases.get(target, target)
        found[digest] = found.get(digest, 0) + weight
    told = {digest: [f"{weight / sum(weights.values()):.1%}"] for digest, weight in found.items()}
    if task.shadow is not None:
        told.setdefault(task.aliases.get(task.shadow, task.shadow), []).append("shadow")
    return told


def _when(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _done(change: HistoryEntry) -> str:
    return f"{change.action}, other labels" if change.other_labels else change.action


def _what(change: HistoryEntry) -> tuple[str, str]:
    """What was changed, and its new value."""
    if change.key is not None:
        return f"key {change.key}", ""
    if change.of_route:
        text = " ".join(f"{t}={w}" for t, w in sorted((change.route or {}).items())) or "none"
        text += f", shadow {change.shadow}" if change.shadow else ""
        return "the route", _DIGEST.sub(lambda found: found[0][:_SHORT_DIGEST], text)
    gone = "gone" if change.alias else ""
    return change.alias, change.digest[:_SHORT_DIGEST] or gone

"""Commands on the store: publish, tasks, promote, rollback, rm, history, gc."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.output import JsonFlag, out, print_json, say, size, table
from serving.cli.stores import DataDir, Namespace, RedisUrl, TaskName, Wait, await_replicas, open_store

if TYPE_CHECKING:
    from serving.store import Task

Alias = Annotated[str, typer.Option(help="which alias of the task")]

_SHORT_DIGEST = 12
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (publish, tasks, promote, rollback, rm, history, gc):
        app.command()(command)


def publish(
    task: TaskName,
    file: Annotated[Path, typer.Argument(help="delta file")],
    alias: Alias = "live",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Upload a delta as a version of a task and point an alias at it, all at once.

    Example: ken publish trec trec.ken
    """
    from ken_core import deltafile

    opened = deltafile.open_file(file)
    with open_store(redis_url, data_dir, namespace) as store:
        revision = store.publish(task, opened, alias)
        say(f"{task}@{alias} is {opened.digest} (revision {revision})")
        await_replicas(store, revision, wait)


def tasks(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """List tasks, their aliases, versions and routes.

    Example: ken tasks --json
    """
    with open_store(redis_url, data_dir, namespace) as store:
        found = store.table()
        sizes = {d: store.size(d) for t in found.tasks.values() for d in t.versions}
    if as_json:
        listed = [
            {
                "task": t.name,
                "aliases": t.aliases,
                "route": t.route.weights if t.route else None,
                "versions": [{"digest": d, "bytes": sizes[d]} for d in t.versions],
            }
            for t in found.tasks.values()
        ]
        print_json({"revision": found.revision, "tasks": listed})
        return
    rows = []
    for task in found.tasks.values():
        routed = _routed(task)
        for digest in task.versions:
            named = ", ".join(sorted(alias for alias, d in task.aliases.items() if d == digest))
            rows.append([task.name, digest, size(sizes[digest] or 0), named, routed.get(digest, "")])
    out.print(table(f"revision {found.revision}", ["task", "digest", "bytes", "aliases", "route"], rows))


def promote(
    task: TaskName,
    digest: Annotated[str, typer.Argument(help="one of the task's versions, or an alias of it")],
    alias: Alias = "live",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Point an alias at another version of its task.

    Example: ken promote trec canary --alias live --wait 10
    """
    with open_store(redis_url, data_dir, namespace) as store:
        known = store.task(task)
        target = known.aliases.get(digest, digest) if known else digest
        revision = store.promote(task, target, alias)
        say(f"{task}@{alias} is {target} (revision {revision})")
        await_replicas(store, revision, wait)


def rollback(
    task: TaskName,
    alias: Alias = "live",
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Point an alias at what it pointed at before.

    Example: ken rollback trec
    """
    with open_store(redis_url, data_dir, namespace) as store:
        revision = store.rollback(task, alias)
        known = store.task(task)
        say(f"{task}@{alias} is {known.aliases[alias] if known else 'gone'} (revision {revision})")
        await_replicas(store, revision, wait)


def rm(
    task: TaskName,
    version: Annotated[str | None, typer.Option(help="only the version of this digest")] = None,
    force: Annotated[bool, typer.Option("--force", help="also what an alias or the route points at")] = False,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Forget a task and all its versions, or one of them; `ken gc` frees their bytes.

    What answers requests is left alone unless forced. An alias whose version is forced out goes back to the version
    before.

    Example: ken rm trec --force
    """
    with open_store(redis_url, data_dir, namespace) as store:
        if version is None:
            revision = store.delete(task, force=force)
        else:
            revision = store.delete_version(task, version, force=force)
        say(f"{task if version is None else f'version {version} of {task}'} is gone (revision {revision})")
        await_replicas(store, revision, wait)


def history(
    task: TaskName,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Show who changed what of a task, newest first; also of one that is gone.

    Example: ken history trec
    """
    from serving.errors import UnknownTaskError

    with open_store(redis_url, data_dir, namespace) as store:
        changes = store.history(task)
    if not changes:
        raise UnknownTaskError(f"there is no task {task!r} and never was; see `ken tasks`")
    if as_json:
        print_json(changes)
        return
    rows = [[_when(c["when"]), c["who"], c["action"], *_what(c), str(c["revision"])] for c in changes]
    out.print(table(f"history of {task}", ["when", "who", "action", "alias", "digest", "revision"], rows))


def gc(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Delete deltas that no task has as a version.

    Example: ken gc
    """
    with open_store(redis_url, data_dir, namespace) as store:
        count, freed = store.gc()
    if as_json:
        print_json({"deltas": count, "bytes": freed})
    else:
        say(f"deleted {count} deltas, {size(freed)}")


def _routed(task: Task) -> dict[str, str]:
    """What share of the requests that name no alias a route gives to each digest."""
    found: dict[str, float] = {}
    for target, share in (task.route.shares() if task.route else {}).items():
        digest = task.aliases.get(target, target)
        found[digest] = found.get(digest, 0) + share
    return {digest: f"{share:.1%}" for digest, share in found.items()}


def _when(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _what(change: dict[str, Any]) -> tuple[str, str]:
    """What was changed, and to what."""
    if "key" in change:
        return f"key {change['key']}", ""
    if "route" in change:
        weights = change["route"] or {}
        text = " ".join(f"{t}={w}" for t, w in sorted(weights.items())) or "none"
        return "the route", _DIGEST.sub(lambda found: found[0][:_SHORT_DIGEST], text)
    gone = "gone" if change["alias"] else ""
    return change["alias"], change["digest"][:_SHORT_DIGEST] or gone

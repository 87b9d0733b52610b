"""Commands on the store: publish, tasks, promote, rollback, rm, gc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.output import JsonFlag, out, print_json, say, size, table
from serving.config import default_data_dir

if TYPE_CHECKING:
    from serving.store import Store

RedisUrl = Annotated[str | None, typer.Option(envvar="KEN_REDIS_URL", help="the store; none: the embedded one")]
DataDir = Annotated[Path | None, typer.Option(envvar="KEN_DATA_DIR", help="where the embedded store lives")]
Namespace = Annotated[str, typer.Option(envvar="KEN_NAMESPACE", help="prefix of all keys in the store")]
Wait = Annotated[float | None, typer.Option(help="seconds to wait until every replica has seen the change")]
Alias = Annotated[str, typer.Option(help="which alias of the task")]
TaskName = Annotated[str, typer.Argument(help="the task's name")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (publish, tasks, promote, rollback, rm, gc):
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
    with _store(redis_url, data_dir, namespace) as store:
        revision = store.publish(task, opened, alias)
        say(f"{task}@{alias} is {opened.digest} (revision {revision})")
        _await_replicas(store, revision, wait)


def tasks(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """List tasks, their aliases and versions.

    Example: ken tasks --json
    """
    with _store(redis_url, data_dir, namespace) as store:
        found = store.table()
        sizes = {d: store.size(d) for t in found.tasks.values() for d in t.versions}
    if as_json:
        listed = [
            {"task": t.name, "aliases": t.aliases, "versions": [{"digest": d, "bytes": sizes[d]} for d in t.versions]}
            for t in found.tasks.values()
        ]
        print_json({"revision": found.revision, "tasks": listed})
        return
    rows = []
    for task in found.tasks.values():
        by_digest: dict[str, list[str]] = {}
        for alias, digest in task.aliases.items():
            by_digest.setdefault(digest, []).append(alias)
        for digest in task.versions:
            named = ", ".join(sorted(by_digest.get(digest, [])))
            rows.append([task.name, digest, size(sizes[digest] or 0), named])
    out.print(table(f"revision {found.revision}", ["task", "digest", "bytes", "aliases"], rows))


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
    with _store(redis_url, data_dir, namespace) as store:
        known = store.task(task)
        target = known.aliases.get(digest, digest) if known else digest
        revision = store.promote(task, target, alias)
        say(f"{task}@{alias} is {target} (revision {revision})")
        _await_replicas(store, revision, wait)


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
    with _store(redis_url, data_dir, namespace) as store:
        revision = store.rollback(task, alias)
        known = store.task(task)
        say(f"{task}@{alias} is {known.aliases[alias] if known else 'gone'} (revision {revision})")
        _await_replicas(store, revision, wait)


def rm(
    task: TaskName,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Forget a task and all its versions; `ken gc` frees their bytes.

    Example: ken rm trec
    """
    with _store(redis_url, data_dir, namespace) as store:
        revision = store.delete(task)
        say(f"{task} is gone (revision {revision})")
        _await_replicas(store, revision, wait)


def gc(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Delete deltas that no task has as a version.

    Example: ken gc
    """
    with _store(redis_url, data_dir, namespace) as store:
        count, freed = store.gc()
    if as_json:
        print_json({"deltas": count, "bytes": freed})
    else:
        say(f"deleted {count} deltas, {size(freed)}")


@contextmanager
def _store(url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Store]:
    from serving.embedded import embedded_store
    from serving.store import Store

    if url:
        yield Store(url, namespace)
        return
    with embedded_store(data_dir or default_data_dir()) as embedded:
        yield Store(embedded, namespace)


def _await_replicas(store: Store, revision: int, seconds: float | None) -> None:
    if seconds is None:
        return
    from serving.errors import UnavailableError

    if not store.wait(revision, seconds):
        behind = sorted(name for name, seen in store.replicas().items() if seen < revision)
        raise UnavailableError(f"after {seconds:g} s these replicas have not seen the change: {', '.join(behind)}")
    say(f"seen by {len(store.replicas())} replicas")

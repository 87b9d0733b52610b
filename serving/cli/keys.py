"""Commands on keys: keys create, keys list, keys revoke."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serving.cli.output import JsonFlag, out, print_json, say, table
from serving.cli.tasks import DataDir, Namespace, RedisUrl, Wait, _await_replicas, _store

if TYPE_CHECKING:
    from serving.keys import Key

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_to(app: typer.Typer) -> None:
    """Register the group of commands."""
    group = typer.Typer(help="Make, list and revoke the keys that clients send.", no_args_is_help=True)
    for name, command in (("create", create), ("list", list_keys), ("revoke", revoke)):
        group.command(name)(command)
    app.add_typer(group, name="keys")


def create(
    name: Annotated[str, typer.Argument(help="whose it is; shows in histories and logs")],
    scope: Annotated[
        list[str] | None, typer.Option(help="predict, publish or admin, each with those before; repeatable")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="glob of the tasks it is for; repeatable; default all")] = None,
    expires: Annotated[str | None, typer.Option(help="such as 90d, 12h, 30m, 4w from now; default never")] = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and print its token, this once.

    Example: ken keys create mobile-app --scope predict --task 'trec*' --expires 90d
    """
    from serving.keys import new_key

    end = None if expires is None else int(time.time()) + _duration(expires)
    key, token = new_key(name, scope or ["predict"], task or ["*"], end)  # type: ignore[arg-type]  # checked there
    with _store(redis_url, data_dir, namespace) as store:
        revision = store.put_key(key.id, key.record())
        if as_json:
            print_json({"token": token, "revision": revision, **_shown(key)})
        else:
            typer.echo(token)
        say(f"key {key.id} of {key.name}: {_told(key)}; the token is shown this once and kept nowhere")
        _await_replicas(store, revision, wait)


def list_keys(
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """List keys. With --json as a server takes them from --keys-file: hashes, no tokens.

    Example: ken keys list
    """
    from serving.keys import moment, readable

    with _store(redis_url, data_dir, namespace) as store:
        keys = sorted(readable(store.keys()), key=lambda key: (key.name, key.created))
    if as_json:
        print_json([key.record() for key in keys])
        return
    rows = [[k.name, k.id, ", ".join(k.scopes), ", ".join(k.tasks), moment(k.created), _end(k)] for k in keys]
    out.print(table(f"{len(keys)} keys", ["name", "id", "scopes", "tasks", "created", "expires"], rows))


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="of `ken keys list`")],
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Make a key invalid.

    Example: ken keys revoke 0a1b2c3d4e5f --wait 10
    """
    with _store(redis_url, data_dir, namespace) as store:
        revision = store.drop_key(key_id)
        say(f"key {key_id} is revoked (revision {revision})")
        _await_replicas(store, revision, wait)


def _shown(key: Key) -> dict[str, Any]:
    return {name: value for name, value in key.record().items() if name != "hash"}


def _told(key: Key) -> str:
    tasks = "every task" if "*" in key.tasks else f"tasks {', '.join(key.tasks)}"
    return f"{', '.join(key.scopes)} on {tasks}, expires {_end(key)}"


def _end(key: Key) -> str:
    from serving.keys import moment

    return "never" if key.expires is None else moment(key.expires)


def _duration(text: str) -> int:
    """Seconds."""
    found = re.fullmatch(r"([1-9]\d{0,6})([mhdw])", text)
    if found is None:
        raise typer.BadParameter(
            f"found {text!r}; expected a number and m, h, d or w, such as 90d", param_hint="--expires"
        )
    return int(found[1]) * _SECONDS[found[2]]

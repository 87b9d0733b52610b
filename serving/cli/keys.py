"""Commands on API keys: keys create, keys list, keys revoke."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from serving.cli.opening import open_backend, open_or_make_backend
from serving.cli.options import DataDir, JsonFlag, Namespace, RedisUrl, Url, Wait
from serving.cli.outcome import tell_pending
from serving.cli.panels import TASKS
from serving.terminal import counted, out, print_json, say, table

if TYPE_CHECKING:
    from serving.client import KeyInfo

_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def add_to(app: typer.Typer) -> None:
    """Register the group of commands."""
    group = typer.Typer(help="Make, list and revoke the API keys that clients send.", no_args_is_help=True)
    for name, command in (("create", create), ("list", list_keys), ("revoke", revoke)):
        group.command(name)(command)
    app.add_typer(group, name="keys", rich_help_panel=TASKS)


def create(
    name: Annotated[str, typer.Argument(help="name of the key's holder, which histories and logs show")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="predict, publish or admin; each includes the ones before it; default predict; repeatable"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="glob of task names that the key is valid for; default all tasks; repeatable"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="time until the key expires, such as 30m, 12h, 90d or 4w; default never")
    ] = None,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an API key and print its token, which cannot be shown again.

    The first key locks the servers of this store: from then on every request needs a key, on loopback too.

    Example: ken keys create mobile-app --scope predict --task 'trec*' --expires 90d
    """
    seconds = None if expires is None else _duration(expires)
    with open_or_make_backend(url, redis_url, data_dir, namespace) as backend:
        key = backend.create_key(name, scope or ["predict"], task or ["*"], expires_in=seconds, wait=wait)
        if as_json:
            print_json(key.model_dump(exclude={"seen", "pending", "silent"}))
        else:
            typer.echo(key.token)
        say(f"key {key.id} of {key.name}: {_told(key)}; the token is shown only now and stored nowhere")
        _tell(key.notice)
        tell_pending(key, wait)


def list_keys(
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """List API keys.

    With --json and without --url, the output is a keys file for `ken serve --keys-file`. It holds hashes, no tokens.

    Example: ken keys list
    """
    from serving.security.keys import moment

    with open_backend(url, redis_url, data_dir, namespace) as backend:
        keys = sorted(backend.keys(), key=lambda key: (key.name, key.created))
    if as_json:
        print_json([key.model_dump() for key in keys])
        return
    rows = [[k.name, k.id, ", ".join(k.scopes), ", ".join(k.tasks), moment(k.created), _end(k)] for k in keys]
    out.print(table(counted(len(keys), "key"), ["name", "id", "scopes", "tasks", "created", "expires"], rows))


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="id of the key, as `ken keys list` shows it")],
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Revoke an API key. It is not accepted any more.

    Servers stay locked after the last key is revoked, also after a restart.

    Example: ken keys revoke 0a1b2c3d4e5f --wait 10
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        change = backend.revoke_key(key_id, wait=wait)
        say(f"key {key_id} is revoked (revision {change.revision})")
        _tell(change.notice)
        tell_pending(change, wait)


def _tell(notice: str | None) -> None:
    if notice is not None:
        say(f"note: {notice}")


def _told(key: KeyInfo) -> str:
    tasks = "every task" if "*" in key.tasks else f"tasks {', '.join(key.tasks)}"
    return f"{', '.join(key.scopes)} on {tasks}, expires {_end(key)}"


def _end(key: KeyInfo) -> str:
    from serving.security.keys import moment

    return "never" if key.expires is None else moment(key.expires)


def _duration(text: str) -> int:
    """Seconds of a duration such as ``90d``."""
    found = re.fullmatch(r"([1-9]\d{0,6})([mhdw])", text)
    if found is None:
        raise typer.BadParameter(
            f"found {text!r}; expected a number and m, h, d or w, such as 90d", param_hint="--expires"
        )
    return int(found[1]) * _SECONDS[found[2]]

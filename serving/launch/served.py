"""What a server that is ready tells the person who started it: the tasks that it serves, and a line to try."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import orjson

from serving.config import Settings
from serving.errors import ServingError
from serving.launch.listening import url
from serving.store import Store
from serving.terminal import counted

_NAMED = 10


def what_is_served(settings: Settings, store_url: str) -> list[str]:
    """Lines about the tasks; none if the store cannot be read, which the server can do without for a time."""
    store = Store(store_url, settings.namespace)
    try:
        table = store.tasks.table()
    except ServingError:
        return []
    finally:
        store.connection.close()
    open_to_all = settings.auth == "off" or (settings.auth == "auto" and settings.on_loopback and not table.locked)
    return lines_of(sorted(table.tasks), url(settings), keys=not open_to_all)


def lines_of(tasks: Sequence[str], server: str, *, keys: bool = False) -> list[str]:
    """Lines about tasks of these names; `keys`: whether requests need one."""
    if not tasks:
        return ["there is no task yet; publish one: ken publish TASK FILE"]
    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
    body = orjson.dumps({"inputs": "a text"}).decode()
    key = ' -H "Authorization: Bearer $KEN_API_KEY"' if keys else ""
    return [
        f"it serves {counted(len(tasks), 'task')}: {', '.join(tasks[:_NAMED])}{more}",
        f"try: curl {server}/v1/tasks/{tasks[0]}/predict -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(body)}",
    ]

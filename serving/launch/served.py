"""What a server that is ready tells the person who started it: the tasks that it serves, and a line to try."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from serving.config import Settings
from serving.errors import ServingError
from serving.launch.listening import url
from serving.launch.question import question_for
from serving.store import Store
from serving.terminal import counted

_NAMED = 10


def what_is_served(settings: Settings, store_url: str) -> list[str]:
    """Lines about the tasks; none if the store cannot be read, which the server can do without for a time."""
    store = Store(store_url, settings.namespace)
    try:
        table = store.tasks.table()
        asked = next((name for name in sorted(table.tasks) if "live" in table.tasks[name].aliases), None)
        manifest = None if asked is None else store.deltas.manifest(table.tasks[asked].aliases["live"])
    except ServingError:
        return []
    finally:
        store.connection.close()
    lines = [names_of(sorted(table.tasks))]
    if asked is not None:
        open_to_all = settings.auth == "off" or (settings.auth == "auto" and settings.on_loopback and not table.locked)
        lines.append(line_to_try(asked, question_for(manifest or {}), url(settings), key=not open_to_all))
    return lines


def names_of(tasks: Sequence[str]) -> str:
    """A line that names the tasks, or the first of many."""
    if not tasks:
        return "there is no task yet; publish one: ken publish TASK FILE"
    more = f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else ""
    return f"it serves {counted(len(tasks), 'task')}: {', '.join(tasks[:_NAMED])}{more}"


def line_to_try(task: str, question: Mapping[str, Any], server: str, *, key: bool) -> str:
    """A line for the shell that asks a task a question; `key`: whether requests need one."""
    header = ' -H "Authorization: Bearer $KEN_API_KEY"' if key else ""
    body = shlex.quote(orjson.dumps(question).decode())
    return f"try: curl {server}/v1/tasks/{task}/predict -H 'Content-Type: application/json'{header} -d {body}"

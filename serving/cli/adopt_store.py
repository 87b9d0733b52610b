"""`ken adopt-store`: a person's word that the store is right after it was emptied, restored or exchanged."""

from __future__ import annotations

import typer

from serving.cli.opening import open_backend
from serving.cli.options import DataDir, Namespace, RedisUrl, Url, Wait
from serving.cli.outcome import tell_pending
from serving.cli.panels import TASKS
from serving.terminal import say


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("adopt-store", rich_help_panel=TASKS)(adopt_store)


def adopt_store(
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    wait: Wait = None,
) -> None:
    """Have all replicas answer by what the store holds now, and by nothing else.

    A replica whose store was emptied, restored from a backup or exchanged keeps the tasks and keys it knew, and says so
    in its log, in /readyz and in answers. See first with `ken tasks` what the store holds: tasks and keys that it does
    not hold are gone after this command.

    Example: ken adopt-store --wait 10
    """
    with open_backend(url, redis_url, data_dir, namespace) as backend:
        change = backend.adopt_store(wait=wait)
        say(f"replicas that kept another history take over what the store holds (revision {change.revision})")
        tell_pending(change, wait)

"""Whom a command asks: the store, or a server in front of it. A command is written once and does not know which."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

from serving.cli.output import say
from serving.cli.stores import open_store

if TYPE_CHECKING:
    from serving.client import Change, HistoryEntry, KeyInfo, NewKey, Revoked, TaskInfo

Url = Annotated[
    str | None,
    typer.Option(envvar="KEN_URL", help="a server to ask, with KEN_API_KEY, in place of the store"),
]

AllowOtherLabels = Annotated[
    bool,
    typer.Option("--allow-other-labels", help="also where answers would have other labels, or be of another kind"),
]


@dataclass(frozen=True)
class Listing:
    """All tasks, and the bytes of their versions' deltas as far as they are known."""

    revision: int
    tasks: Sequence[TaskInfo]
    sizes: Mapping[str, int]


class Backend(Protocol):
    """What commands need. `serving.client.Client` says what each method does."""

    def listing(self) -> Listing: ...
    def task(self, name: str) -> TaskInfo: ...
    def history(self, name: str) -> list[HistoryEntry]: ...
    def publish(
        self,
        task: str,
        delta: Path,
        alias: str = ...,
        *,
        allow_other_labels: bool = ...,
        wait: float | None = ...,
        progress: Callable[[int, int], None] | None = ...,
    ) -> Change: ...
    def promote(
        self, task: str, digest: str, alias: str = ..., *, allow_other_labels: bool = ..., wait: float | None = ...
    ) -> Change: ...
    def rollback(self, task: str, alias: str = ..., *, wait: float | None = ...) -> Change: ...
    def delete_version(self, task: str, digest: str, *, force: bool = ..., wait: float | None = ...) -> Change: ...
    def delete_task(self, task: str, *, force: bool = ..., wait: float | None = ...) -> Change: ...
    def set_route(
        self,
        task: str,
        weights: Mapping[str, int],
        *,
        shadow: str | None = ...,
        allow_other_labels: bool = ...,
        wait: float | None = ...,
    ) -> Change: ...
    def clear_route(self, task: str, *, wait: float | None = ...) -> Change: ...
    def rollback_route(self, task: str, *, wait: float | None = ...) -> Change: ...
    def keys(self) -> Sequence[KeyInfo]: ...
    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        tasks: Sequence[str] = ...,
        *,
        expires_in: float | None = ...,
        wait: float | None = ...,
    ) -> NewKey: ...
    def revoke_key(self, id: str, *, wait: float | None = ...) -> Revoked: ...


@contextmanager
def backend(url: str | None, redis_url: str | None, data_dir: Path | None, namespace: str) -> Iterator[Backend]:
    """The server at `url`, asked with the key in ``KEN_API_KEY``; without a URL, the store."""
    if url:
        from serving.cli.over_http import Server

        with Server(url, os.environ.get("KEN_API_KEY") or None) as server:
            yield server
        return
    from serving.cli.direct import Direct

    with open_store(redis_url, data_dir, namespace) as store:
        yield Direct(store)


def recorded(asked: Backend, task: str, change: Change, action: str | None = None) -> HistoryEntry:
    """What a change did, from the history, which unlike a replica's table is never behind.

    Args:
        action: which entry, where the change made several.

    Raises:
        UnavailableError: others changed the task so often meanwhile that it is not among the newest.
    """
    from serving.errors import UnavailableError

    made = (entry for entry in asked.history(task) if entry.revision == change.revision)
    found = next((entry for entry in made if action in (None, entry.action)), None)
    if found is None:
        raise UnavailableError(f"the change was made (revision {change.revision}), but {task} was changed much since")
    return found


def tell_pending(change: Change | NewKey, wait: float | None) -> None:
    """Say whether every replica has seen a change that was waited for.

    Raises:
        UnavailableError: some have not; the message names them.
    """
    if wait is None:
        return
    from serving.errors import UnavailableError

    if change.pending:
        behind = ", ".join(change.pending)
        raise UnavailableError(f"after {wait:g} s these replicas have not seen the change: {behind}")
    say("seen by every replica")

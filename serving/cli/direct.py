"""Commands on the store itself: a backend with the methods and the results of a server's client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from serving.cli.backend import Listing
from serving.client import Change, Collected, HistoryEntry, KeyInfo, NewKey, Revoked, TaskInfo
from serving.routing.routes import Route
from serving.security.exposure import FIRST_KEY, LAST_KEY
from serving.security.keys import new_key, readable
from serving.security.signature_file import read_signatures
from serving.store import Store, Task
from serving.store.replicas import Spread


class StoredKey(KeyInfo):
    """A key with the hash of its secret, in the form of a record of a keys file."""

    hash: str


class StoreBackend:
    """A `serving.cli.backend.Backend` on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def listing(self) -> Listing:
        found = self._store.tasks.table()
        sizes = {d: self._store.deltas.size(d) or 0 for t in found.tasks.values() for d in t.versions}
        return Listing(found.revision, [_info(task) for task in found.tasks.values()], sizes)

    def task(self, name: str) -> TaskInfo:
        return _info(self._store.tasks.known(name))

    def history(self, name: str) -> list[HistoryEntry]:
        return [HistoryEntry.model_validate(entry) for entry in self._store.history.of(name)]

    def publish(
        self,
        task: str,
        delta: Path,
        alias: str = "live",
        *,
        allow_other_labels: bool = False,
        wait: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Change:
        from ken_core import (
            open_file,
        )  # imported late: it builds the manifest's models, which other commands do not need

        opened = open_file(delta)
        revision = self._store.tasks.publish(
            task, opened, alias, signatures=read_signatures(delta), allow_other_labels=allow_other_labels
        )
        change = self._seen(revision, wait, task)
        if progress is not None:
            progress(opened.size, opened.size)
        return change

    def promote(
        self,
        task: str,
        digest: str,
        alias: str = "live",
        *,
        allow_other_labels: bool = False,
        wait: float | None = None,
    ) -> Change:
        revision = self._store.tasks.promote(task, digest, alias, allow_other_labels=allow_other_labels)
        return self._seen(revision, wait, task)

    def rollback(self, task: str, alias: str = "live", *, wait: float | None = None) -> Change:
        return self._seen(self._store.tasks.rollback(task, alias), wait, task)

    def delete_version(self, task: str, digest: str, *, force: bool = False, wait: float | None = None) -> Change:
        return self._seen(self._store.tasks.delete_version(task, digest, force=force), wait, task)

    def delete_task(self, task: str, *, force: bool = False, wait: float | None = None) -> Change:
        return self._seen(self._store.tasks.delete(task, force=force), wait, task)

    def set_route(
        self,
        task: str,
        weights: Mapping[str, int],
        *,
        shadow: str | None = None,
        allow_other_labels: bool = False,
        wait: float | None = None,
    ) -> Change:
        revision = self._store.tasks.set_route(
            task, Route(dict(weights), shadow), allow_other_labels=allow_other_labels
        )
        return self._seen(revision, wait, task)

    def clear_route(self, task: str, *, wait: float | None = None) -> Change:
        return self._seen(self._store.tasks.set_route(task, None), wait, task)

    def rollback_route(self, task: str, *, wait: float | None = None) -> Change:
        return self._seen(self._store.tasks.rollback_route(task), wait, task)

    def adopt_store(self, *, wait: float | None = None) -> Change:
        return self._seen(self._store.adoptions.add(), wait)

    def collect_garbage(self) -> Collected:
        return Collected(**asdict(self._store.garbage.collect()))

    def keys(self) -> list[StoredKey]:
        return [StoredKey.model_validate(key.record()) for key in readable(self._store.keys.all())]

    def create_key(
        self,
        name: str,
        scopes: Sequence[str],
        tasks: Sequence[str] = ("*",),
        *,
        expires_in: float | None = None,
        wait: float | None = None,
    ) -> NewKey:
        end = None if expires_in is None else int(time.time() + expires_in)
        key, token = new_key(name, scopes, tasks, end)  # type: ignore[arg-type]  # new_key checks them
        notice = None if self._store.keys.locked() else FIRST_KEY
        change = self._seen(self._store.keys.put(key.id, key.record()), wait)
        made = {"token": token, "notice": notice}
        return NewKey.model_validate(key.record() | change.model_dump(exclude={"task"}) | made)

    def revoke_key(self, id: str, *, wait: float | None = None) -> Revoked:
        change = self._seen(self._store.keys.drop(id), wait)
        return Revoked(**change.model_dump(), notice=None if self._store.keys.all() else LAST_KEY)

    def _seen(self, revision: int, wait: float | None, task: str | None = None) -> Change:
        spread = Spread() if wait is None else self._store.replicas.wait(revision, wait)
        return Change(task=task, revision=revision, **asdict(spread))


def _info(task: Task) -> TaskInfo:
    return TaskInfo(
        name=task.name,
        revision=task.revision,
        aliases=task.aliases,
        versions=task.versions,
        route=task.route.weights if task.route else None,
        shadow=task.route.shadow if task.route else None,
    )

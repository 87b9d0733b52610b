"""Tasks in the store: versions, aliases, routes and their history; every change is one script, all of it or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import orjson

from serving.errors import ConflictError, OtherLabelsError, StoreError, UnknownTaskError
from serving.kinds import answer_form
from serving.names import check_alias, check_digest, check_name
from serving.routing.answer_form import AnswerForm
from serving.routing.routes import Route, check_route
from serving.routing.versions import version_of, with_whole_digests
from serving.security.signatures import Signature, check_genuine
from serving.store.comparison import Comparison, of_alias, of_promotion, of_route
from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.history import whoami
from serving.store.keys import read_keys
from serving.store.leases import Leases
from serving.store.signatures import Signatures
from serving.store.table import Table, Task

if TYPE_CHECKING:
    from ken_core import DeltaFile
    from ken_core.manifest import Manifest

_REVISION = "@revision"
_ROUTE = "@route"
"""The route lies beside the aliases, so that a reader gets both at once, and moves as they do."""
_READ_SECONDS = 10.0


class Tasks:
    """Which delta answers for which name.

    What would have a version answer a task's callers in another form than they get now (labels, kind) is refused with
    `OtherLabelsError` unless `allow_other_labels` is said. Returning to what was before is always possible.
    """

    def __init__(self, connection: Connection, leases: Leases, deltas: Deltas, signatures: Signatures) -> None:
        self._connection = connection
        self._leases = leases
        self._deltas = deltas
        self._signatures = signatures

    def publish(
        self,
        task: str,
        file: DeltaFile,
        alias: str = "live",
        who: str | None = None,
        signatures: Sequence[Signature] = (),
        allow_other_labels: bool = False,
    ) -> int:
        """Upload a delta, make it a version of the task and point the alias at it: all of it or nothing.

        Args:
            signatures: of the delta, kept beside those by other keys that the store has already.

        Returns:
            The store's revision after the change.

        Raises:
            InvalidInputError: a name nothing can have, or a signature that is not of this delta.
            OtherLabelsError: see `Tasks`.
        """
        check_name("task", task)
        check_alias(alias)
        check_genuine(file.digest, signatures)
        compare = partial(of_alias, alias=alias, digest=file.digest)
        accept = partial(self._accept, task, compare, allow_other_labels, {file.digest: file.manifest})
        with self._leases.shared(file.digest):
            accept()  # before anything is sent
            self._deltas.put(file)
            self._signatures.add(file.digest, signatures)
            return self._changed("publish", task, alias, file.digest, who, accept)

    def publish_digest(
        self,
        task: str,
        digest: str,
        alias: str = "live",
        who: str | None = None,
        signatures: Sequence[Signature] = (),
        allow_other_labels: bool = False,
    ) -> int:
        """Make a delta the store holds a version of the task, and point the alias at it; returns the revision.

        Args:
            signatures: as in `publish`.

        Raises:
            InvalidInputError, OtherLabelsError: as in `publish`.
            UnknownTaskError: the store does not hold the delta whole.
        """
        check_name("task", task)
        check_alias(alias)
        check_genuine(digest, signatures)
        with self._leases.shared(check_digest(digest)):
            self._signatures.add(self._complete(task, digest), signatures)
            accept = partial(self._accept, task, partial(of_alias, alias=alias, digest=digest), allow_other_labels)
            return self._changed("publish", task, alias, digest, who, accept)

    def promote(
        self,
        task: str,
        digest: str,
        alias: str = "live",
        who: str | None = None,
        allow_other_labels: bool = False,
    ) -> int:
        """Point an alias at a version already published to this task; returns the revision.

        Args:
            digest: the version's, or how it begins, or another alias that points at it: see `version_of`.

        Raises:
            UnknownTaskError: no such task, or none of its versions is meant.
            InvalidInputError: several may be meant.
            OtherLabelsError: see `Tasks`.
        """
        check_alias(alias)
        # whether the store holds it is asked of versions alone: it must not show whether others published it
        found = self._complete(task, version_of(self.known(task), digest))
        accept = partial(self._accept, task, partial(of_promotion, alias=alias, digest=found), allow_other_labels)
        return self._changed("promote", task, alias, found, who, accept)

    def rollback(self, task: str, alias: str = "live", who: str | None = None) -> int:
        """Point an alias at what it pointed at before; returns the revision.

        Raises:
            UnknownTaskError: no such task or alias.
            ConflictError: nothing before the current version.
        """
        return self._changed("rollback", check_name("task", task), check_name("alias", alias), "", who)

    def set_route(
        self, task: str, route: Route | None, who: str | None = None, allow_other_labels: bool = False
    ) -> int:
        """Split the requests that name no alias, or send them all to ``live`` (None); returns the revision.

        Args:
            route: its digests may be beginnings; whole ones are kept.

        Raises:
            UnknownTaskError: no such task, or a target or the shadow is neither an alias nor a version of it.
            InvalidInputError: a target may be several versions, or two are the same one.
            OtherLabelsError: see `Tasks`.
        """
        known = self.known(task)
        if route is None:
            return self._changed("route", task, _ROUTE, "", who)
        whole = with_whole_digests(known, route)
        accept = partial(self._accept, task, partial(of_route, route=whole), allow_other_labels)
        return self._changed("route", task, _ROUTE, orjson.dumps(whole.plain()).decode(), who, accept)

    def rollback_route(self, task: str, who: str | None = None) -> int:
        """Return to the route, or to none, that was before; returns the revision.

        Raises:
            UnknownTaskError: no such task.
            ConflictError: nothing before the current one.
        """
        return self._changed("rollback-route", check_name("task", task), _ROUTE, "", who)

    def delete(self, task: str, who: str | None = None, force: bool = False) -> int:
        """Forget a task, its aliases and versions; `gc` frees the blobs. Returns the revision.

        Raises:
            UnknownTaskError: no such task.
            ConflictError: an alias or the route points at one of its versions, and it is not forced.
        """
        return self._deleted("delete", check_name("task", task), "", who, force)

    def delete_version(self, task: str, digest: str, who: str | None = None, force: bool = False) -> int:
        """Forget one version of a task; `gc` frees its blobs. Returns the revision.

        No rollback returns to it. Forced while it is in use, each alias that points at it goes back to what it
        pointed at before, or goes away where there is nothing before; the route loses what is no more.

        Args:
            digest: the version's, or how it begins, or an alias that points at it: see `version_of`.

        Raises:
            UnknownTaskError: no such task or version.
            InvalidInputError: several versions may be meant.
            ConflictError: an alias or the route points at it, and it is not forced.
        """
        return self._deleted("delete-version", task, version_of(self.known(task), digest), who, force)

    def get(self, name: str) -> Task | None:
        """A task, None if there is none of this name."""
        key = self._connection.control_key("task", name)
        for _ in self._tries():
            with self._connection.store_errors:
                pipe = self._connection.client.pipeline(transaction=False)
                pipe.hgetall(key)
                pipe.zrange(self._connection.control_key("versions", name), 0, -1)
                pipe.hget(key, _REVISION)
                fields, versions, revision = pipe.execute()
            if fields.get(_REVISION.encode()) == revision:
                return _task(name, fields, versions) if fields else None
        raise AssertionError

    def known(self, name: str) -> Task:
        """A task; raises `UnknownTaskError` if there is none of this name."""
        known = self.get(check_name("task", name))
        if known is None:
            raise UnknownTaskError(f"there is no task {name!r}; see `ken tasks`")
        return known

    def table(self) -> Table:
        """All tasks and keys, read again until no change came in between."""
        counter = self._connection.control_key("revision")
        for _ in self._tries():
            with self._connection.store_errors:
                pipe = self._connection.client.pipeline(transaction=False)
                pipe.get(counter)
                pipe.smembers(self._connection.control_key("tasks"))
                before, members = pipe.execute()
                names = sorted(name.decode() for name in members)
                pipe = self._connection.client.pipeline(transaction=False)
                for name in names:
                    pipe.hgetall(self._connection.control_key("task", name))
                    pipe.zrange(self._connection.control_key("versions", name), 0, -1)
                pipe.hgetall(self._connection.control_key("keys"))
                pipe.exists(self._connection.control_key("locked"))
                pipe.get(counter)
                *answers, keys, locked, after = pipe.execute()
            if after == before:
                found = zip(names, answers[::2], answers[1::2], strict=True)
                return Table(
                    int(before or 0), {n: _task(n, f, v) for n, f, v in found if f}, read_keys(keys), bool(locked)
                )
        raise AssertionError

    def have_version(self, digest: str) -> bool:
        """Whether a delta is a version of any task."""
        client, control = self._connection.client, self._connection.control_key
        with self._connection.store_errors:
            names = [name.decode() for name in client.smembers(control("tasks"))]
            return any(client.zscore(control("versions", name), digest) is not None for name in names)

    def _tries(self) -> Iterator[None]:
        """Turns at reading, until it takes too long; not a transaction, for who reads may have the right to no more."""
        deadline = time.monotonic() + _READ_SECONDS
        while time.monotonic() < deadline:
            yield
        raise StoreError(f"the store at {self._connection.where} changes faster than it can be read")

    def _complete(self, task: str, digest: str) -> str:
        if not self._deltas.has(check_digest(digest)):
            raise UnknownTaskError(f"task {task!r}: the store does not hold a delta {digest}; publish it first")
        return digest

    def _accept(
        self,
        task: str,
        compare: Callable[[Task], Comparison],
        allow_other_labels: bool,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> tuple[int, str]:
        """Compare the versions that a change would have answer with those that answer now.

        The manifests lie in other hash slots than the task, so no script could read them.

        Args:
            manifests: of deltas that the store may not hold yet, by digest.

        Returns:
            The task's revision that this holds for, 0 for no task, and what differs and is allowed, in words.

        Raises:
            OtherLabelsError: something does, and is not allowed.
        """
        known = self.get(task)
        if known is None:
            return 0, ""
        differs = compare(known).difference(partial(self._form, manifests or {}))
        if differs and not allow_other_labels:
            raise OtherLabelsError(
                f"versions of task {task!r} would answer in different forms: {differs}. Give what answers otherwise a "
                "task of its own, or allow it: --allow-other-labels, over HTTP and in Python allow_other_labels"
            )
        return known.revision, differs

    def _form(self, manifests: Mapping[str, Manifest], digest: str) -> AnswerForm | None:
        """The form of a version's answers; None where the store's manifest of it is gone or damaged."""
        from ken_core.manifest import Manifest  # needs torch, which who only lists tasks need not wait for

        try:
            return answer_form(manifests.get(digest) or Manifest.model_validate(self._deltas.manifest(digest)))
        except ValueError:
            return None

    def _changed(
        self,
        action: str,
        task: str,
        pointer: str,
        value: str,
        who: str | None,
        accept: Callable[[], tuple[int, str]] | None = None,
    ) -> int:
        """Make a change. What is accepted only at the task's revision is accepted anew where others change the task."""
        for _ in self._tries():
            revision = self._changed_once(action, task, pointer, value, who, *(accept() if accept else ("", "")))
            if revision is not None:
                return revision
        raise AssertionError

    def _changed_once(
        self, action: str, task: str, pointer: str, value: str, who: str | None, seen: int | str, other_labels: str
    ) -> int | None:
        """None: the task is at another revision than the one seen."""
        keys = [
            self._connection.control_key("task", task),
            self._connection.control_key("versions", task),
            self._connection.control_key("stack", task, pointer),
            self._connection.control_key("tasks"),
            *self._connection.record_keys(task),
        ]
        match self._connection.run("change", keys, action, task, pointer, value, who or whoami(), seen, other_labels):
            case [b"ok", revision]:
                return int(revision)
            case [b"changed"]:
                return None
            case [b"no-task", *_]:
                raise UnknownTaskError(f"there is no task {task!r}; see `ken tasks`")
            case [b"no-version", *_]:
                raise UnknownTaskError(f"{value} is no version of task {task!r}; publish it first")
            case [b"no-alias", *_]:
                raise UnknownTaskError(f"task {task!r} has no alias {pointer!r}")
            case [b"no-target", target]:
                raise UnknownTaskError(f"{target.decode()!r} is neither an alias nor a version of task {task!r}")
        if pointer == _ROUTE:
            raise ConflictError(f"task {task!r} had no other route before; nothing to return to")
        raise ConflictError(f"alias {pointer!r} of task {task!r} has no earlier version to return to")

    def _deleted(self, action: str, task: str, digest: str, who: str | None, force: bool) -> int:
        keys = [
            self._connection.control_key("task", task),
            self._connection.control_key("versions", task),
            self._connection.control_key("stack", task),
            self._connection.control_key("tasks"),
            *self._connection.record_keys(task),
        ]
        match self._connection.run("delete", keys, action, task, digest, int(force), who or whoami()):
            case [b"ok", revision]:
                return int(revision)
            case [b"no-task"]:
                raise UnknownTaskError(f"there is no task {task!r}; see `ken tasks`")
            case [b"no-version"]:
                raise UnknownTaskError(f"{digest} is no version of task {task!r}; see `ken tasks`")
            case [_, *holders]:
                raise ConflictError(_in_use(task, digest, sorted(h.decode() for h in holders)))
        raise AssertionError


def _in_use(task: str, digest: str, holders: list[str]) -> str:
    named = ", ".join("the route" if h == _ROUTE else f"alias {h!r}" for h in holders)
    if digest:
        return f"version {digest} of task {task!r} is in use by {named}; point them elsewhere first, or use force"
    return f"task {task!r} is in use by {named}; to delete it all the same, use force"


def _task(name: str, fields: dict[bytes, bytes], versions: list[bytes]) -> Task:
    plain = {k.decode(): v.decode() for k, v in fields.items()}
    revision = int(plain.pop(_REVISION, 0))
    text = plain.pop(_ROUTE, "")
    route = check_route(orjson.loads(text)) if text else None
    return Task(name, revision, plain, tuple(v.decode() for v in versions), route)

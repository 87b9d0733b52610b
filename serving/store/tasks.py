"""Tasks in the store: versions, aliases and routes. Every change is one script, so it is made whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import orjson

from serving.errors import ConflictError, OtherLabelsError, StoreError, UnknownTaskError
from serving.names import check_alias, check_digest, check_name
from serving.routing.answer_form import AnswerForm
from serving.routing.kinds import answer_form
from serving.routing.routes import Route, check_route
from serving.routing.versions import version_of, with_whole_digests
from serving.security.signatures import Signature, check_genuine
from serving.store.comparison import Comparison, of_alias, of_promotion, of_route
from serving.store.connection import Connection
from serving.store.deltas import Deltas
from serving.store.history import whoami
from serving.store.keys import read_keys
from serving.store.leases import Leases
from serving.store.lineage import Lineage
from serving.store.signatures import Signatures
from serving.store.table import Table, Task

if TYPE_CHECKING:
    from ken_core import DeltaFile
    from ken_core.manifest import Manifest

_REVISION = "@revision"
_ROUTE = "@route"
"""The route is kept like an alias, in the task's hash: one read gets both, and the same script changes both."""
_READ_SECONDS = 10.0


class Tasks:
    """Which delta answers under which task's name.

    A change is refused with `OtherLabelsError` if a version would then answer the task's callers in another form
    (labels, kind) than they get now, unless the change is made with `allow_other_labels`. A rollback is never refused
    for its labels.
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
        """Upload a delta, make it a version of the task and point the alias at it. Nothing of the task changes in part.

        Args:
            who: the author of the change, for the history; by default this process's user and host.
            signatures: of the delta. They are kept beside signatures by other keys that the store already has.

        Returns:
            The store's revision after the change.

        Raises:
            InvalidInputError: not a valid name of a task or an alias, or a signature of another delta.
            OtherLabelsError: see `Tasks`.
        """
        check_name("task", task)
        check_alias(alias)
        check_genuine(file.digest, signatures)
        compare = partial(of_alias, alias=alias, digest=file.digest)
        accept = partial(self._accept, task, compare, allow_other_labels, {file.digest: file.manifest})
        with self._leases.shared(file.digest):
            accept()  # refuses before anything is uploaded
            self._deltas.put(file)
            self._signatures.add(file.digest, signatures)
            return self._change("publish", task, alias, file.digest, who, accept)

    def publish_digest(
        self,
        task: str,
        digest: str,
        alias: str = "live",
        who: str | None = None,
        signatures: Sequence[Signature] = (),
        allow_other_labels: bool = False,
    ) -> int:
        """Make a delta that the store holds a version of the task, and point the alias at it; returns the revision.

        Args:
            who, signatures: as in `publish`.

        Raises:
            InvalidInputError, OtherLabelsError: as in `publish`.
            UnknownTaskError: the store does not hold the delta.
        """
        check_name("task", task)
        check_alias(alias)
        check_genuine(digest, signatures)
        with self._leases.shared(check_digest(digest)):
            self._signatures.add(self._complete(task, digest), signatures)
            accept = partial(self._accept, task, partial(of_alias, alias=alias, digest=digest), allow_other_labels)
            return self._change("publish", task, alias, digest, who, accept)

    def promote(
        self,
        task: str,
        digest: str,
        alias: str = "live",
        who: str | None = None,
        allow_other_labels: bool = False,
    ) -> int:
        """Point an alias at a version of the task; returns the revision.

        Args:
            digest: the version's digest, or its first digits, or another alias that points at it: see `version_of`.

        Raises:
            UnknownTaskError: no such task or version.
            InvalidInputError: several versions may be meant.
            OtherLabelsError: see `Tasks`.
        """
        check_alias(alias)
        # the store is searched only for the task's own versions: an answer must not show what other tasks published
        found = self._complete(task, version_of(self.known(task), digest))
        accept = partial(self._accept, task, partial(of_promotion, alias=alias, digest=found), allow_other_labels)
        return self._change("promote", task, alias, found, who, accept)

    def rollback(self, task: str, alias: str = "live", who: str | None = None) -> int:
        """Point an alias at the version it pointed at before; returns the revision.

        Raises:
            UnknownTaskError: no such task or alias.
            ConflictError: the alias has no earlier version to return to.
        """
        return self._change("rollback", check_name("task", task), check_name("alias", alias), "", who)

    def set_route(
        self, task: str, route: Route | None, who: str | None = None, allow_other_labels: bool = False
    ) -> int:
        """Set how requests that name no alias are split; returns the revision.

        Args:
            route: None sends all requests to ``live``. Digests may be given by their first digits; the store keeps
                them whole.

        Raises:
            UnknownTaskError: no such task, or a target or the shadow is neither an alias nor a version of the task.
            InvalidInputError: a target may mean several versions, or two targets mean the same version.
            OtherLabelsError: see `Tasks`.
        """
        known = self.known(task)
        if route is None:
            return self._change("route", task, _ROUTE, "", who)
        whole = with_whole_digests(known, route)
        accept = partial(self._accept, task, partial(of_route, route=whole), allow_other_labels)
        return self._change("route", task, _ROUTE, orjson.dumps(whole.plain()).decode(), who, accept)

    def rollback_route(self, task: str, who: str | None = None) -> int:
        """Return to the route before the current one, which may be no route; returns the revision.

        Raises:
            UnknownTaskError: no such task.
            ConflictError: the task has no earlier route to return to.
        """
        return self._change("rollback-route", check_name("task", task), _ROUTE, "", who)

    def delete(self, task: str, who: str | None = None, force: bool = False) -> int:
        """Delete a task with its aliases and versions; returns the revision. `Garbage` frees the deltas later.

        Raises:
            UnknownTaskError: no such task.
            ConflictError: an alias or the route points at a version of the task, and `force` is not set.
        """
        return self._delete("delete", check_name("task", task), "", who, force)

    def delete_version(self, task: str, digest: str, who: str | None = None, force: bool = False) -> int:
        """Delete one version of a task; returns the revision. `Garbage` frees the delta later.

        No rollback returns to a deleted version. If a version in use is deleted by force, each alias that points at
        the version returns to the version before; an alias without one is deleted. The route loses each target that
        no longer exists.

        Args:
            digest: the version's digest, or its first digits, or an alias that points at it: see `version_of`.

        Raises:
            UnknownTaskError: no such task or version.
            InvalidInputError: several versions may be meant.
            ConflictError: an alias or the route points at the version, and `force` is not set.
        """
        return self._delete("delete-version", task, version_of(self.known(task), digest), who, force)

    def get(self, name: str) -> Task | None:
        """The task of this name, None if there is none."""
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
        """The task of this name; raises `UnknownTaskError` if there is none."""
        known = self.get(check_name("task", name))
        if known is None:
            raise UnknownTaskError(f"there is no task {name!r}; see `ken tasks`")
        return known

    def table(self) -> Table:
        """All tasks and API keys at one revision: they are read again if something changed meanwhile."""
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
                pipe.hgetall(self._connection.control_key("marks"))
                pipe.smembers(self._connection.control_key("adoptions"))
                pipe.get(counter)
                *answers, keys, locked, marks, adoptions, after = pipe.execute()
            if after == before:
                found = zip(names, answers[::2], answers[1::2], strict=True)
                tasks = {n: _task(n, f, v) for n, f, v in found if f}
                return Table(int(before or 0), tasks, read_keys(keys), bool(locked), _lineage(marks, adoptions))
        raise AssertionError

    def versions(self) -> set[str]:
        """The digests of all versions of all tasks."""
        client, control = self._connection.client, self._connection.control_key
        with self._connection.store_errors:
            pipe = client.pipeline(transaction=False)
            for name in client.smembers(control("tasks")):
                pipe.zrange(control("versions", name.decode()), 0, -1)
            return {digest.decode() for digests in pipe.execute() for digest in digests}

    def _tries(self) -> Iterator[None]:
        """Attempts to read, for as long as reading may take.

        Not a transaction, since a user of the server who may only read has no right to one.
        """
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
        """Compare the versions that would answer after a change with those that answer now.

        The script that makes the change cannot do this: manifests lie in other hash slots than the task.

        Args:
            manifests: digest -> manifest, of deltas that the store may not hold yet.

        Returns:
            The task's revision at which they were compared, 0 for no task; and the allowed differences in words.

        Raises:
            OtherLabelsError: the forms differ, and this is not allowed.
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
        """The form of a version's answers; None where its manifest in the store is gone or damaged."""
        from ken_core.manifest import Manifest  # pydantic builds its models slowly, and no list of tasks needs them

        try:
            return answer_form(manifests.get(digest) or Manifest.model_validate(self._deltas.manifest(digest)))
        except ValueError:
            return None

    def _change(
        self,
        action: str,
        task: str,
        pointer: str,
        value: str,
        who: str | None,
        accept: Callable[[], tuple[int, str]] | None = None,
    ) -> int:
        """Make a change; returns the store's revision.

        Args:
            accept: called before each attempt, see `_accept`. Its answer holds for one revision of the task; if the
                task changed since, the script changes nothing and there is another attempt.
        """
        for _ in self._tries():
            revision = self._try_change(action, task, pointer, value, who, *(accept() if accept else ("", "")))
            if revision is not None:
                return revision
        raise AssertionError

    def _try_change(
        self, action: str, task: str, pointer: str, value: str, who: str | None, seen: int | str, other_labels: str
    ) -> int | None:
        """The store's revision after the change; None if the task's revision is not `seen`, and nothing was changed."""
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

    def _delete(self, action: str, task: str, digest: str, who: str | None, force: bool) -> int:
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
        return (
            f"version {digest} of task {task!r} is in use by {named}; point them elsewhere first, or use force "
            "(`--force`)"
        )
    return f"task {task!r} is in use by {named}; to delete it all the same, use force (`--force`)"


def _lineage(fields: dict[bytes, bytes], adoptions: set[bytes]) -> Lineage:
    plain = {field.decode(): mark.decode() for field, mark in fields.items()}
    epoch = plain.pop("epoch", "")
    marks = {int(revision): mark for revision, mark in plain.items()}
    return Lineage(epoch, marks, frozenset(id.decode() for id in adoptions))


def _task(name: str, fields: dict[bytes, bytes], versions: list[bytes]) -> Task:
    plain = {k.decode(): v.decode() for k, v in fields.items()}
    revision = int(plain.pop(_REVISION, 0))
    text = plain.pop(_ROUTE, "")
    route = check_route(orjson.loads(text)) if text else None
    return Task(name, revision, plain, tuple(v.decode() for v in versions), route)

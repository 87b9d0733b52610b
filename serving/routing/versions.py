"""Which of a task's versions is meant: by its digest, by how the digest begins, or by an alias. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

from serving.errors import InvalidInputError, UnknownTaskError
from serving.names import is_digest
from serving.routing.routes import Route

SHORTEST = 12
"""Digits of a digest that are enough if no other version of the task begins so: as many as tables and metrics show."""

_BEGINNING = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")
_DIGITS = re.compile(r"[0-9a-f]+")
_SHOWN = 80


class Versioned(Protocol):
    """A `serving.store.Task`, as far as names of versions go."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> Mapping[str, str]: ...
    @property
    def versions(self) -> Collection[str]: ...


def version_of(task: Versioned, named: str) -> str:
    """The whole digest of the version that is meant.

    A whole digest always means itself. Of what else looks like the beginning of one, an alias of that name comes first.

    Args:
        named: an alias, a digest, or `SHORTEST` or more of the digits that it begins with.

    Raises:
        UnknownTaskError: the task has no such alias or version.
        InvalidInputError: several versions begin so; the message names them.
    """
    if is_alias(task, named):
        return task.aliases[named]
    if _BEGINNING.fullmatch(named):
        return pinned(task, named)
    have = ", ".join(sorted(task.aliases)) or "none"
    short = f"; of a digest, give at least {SHORTEST} digits" if _DIGITS.fullmatch(named) else ""
    raise UnknownTaskError(f"task {task.name!r} has no alias {named[:_SHOWN]!r}; it has: {have}{short}")


def pinned(task: Versioned, named: str) -> str:
    """As `version_of`, where an alias does not count.

    Raises:
        UnknownTaskError, InvalidInputError: as `version_of` does.
    """
    if not _BEGINNING.fullmatch(named):
        raise UnknownTaskError(
            f"{named[:_SHOWN]!r} is no version of task {task.name!r}: expected a digest, 64 hexadecimal digits in "
            f"lower case, or {SHORTEST} or more that it begins with"
        )
    found = sorted(digest for digest in task.versions if digest.startswith(named))
    if not found:
        raise UnknownTaskError(
            f"{named!r} is no version of task {task.name!r}; publish it first, or see `ken tasks` for what is there"
        )
    if len(found) > 1:
        raise InvalidInputError(
            f"{named!r} begins {len(found)} versions of task {task.name!r}: {', '.join(found)}; give more digits"
        )
    return found[0]


def is_alias(task: Versioned, named: str) -> bool:
    """Whether a name is to be read as an alias: the task has one of it, and it is no whole digest."""
    return named in task.aliases and not is_digest(named)


def is_pin(task: Versioned, named: str) -> bool:
    """Whether a name is to be read as a digest or its beginning."""
    return bool(_BEGINNING.fullmatch(named)) and not is_alias(task, named)


def with_whole_digests(task: Versioned, route: Route) -> Route:
    """A route whose targets are aliases, as they are, and whole digests, as it is kept.

    Raises:
        UnknownTaskError: a target, or the shadow, is neither an alias nor a version of the task.
        InvalidInputError: one may be several versions, or two are the same one.
    """
    weights: dict[str, int] = {}
    for named, weight in route.weights.items():
        target = _target(task, named)
        if target in weights:
            raise InvalidInputError(f"the route names version {target} twice, once as {named!r}; give it one weight")
        weights[target] = weight
    return replace(route, weights=weights, shadow=route.shadow and _target(task, route.shadow))


def _target(task: Versioned, named: str) -> str:
    if is_alias(task, named):
        return named
    try:
        return pinned(task, named)
    except UnknownTaskError:
        raise UnknownTaskError(
            f"{named!r} is neither an alias nor a version of task {task.name!r}; a version is named by its digest, or "
            f"by {SHORTEST} or more digits that it begins with"
        ) from None

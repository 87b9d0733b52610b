"""Which version of a task a name means: an alias, a digest, or the beginning of a digest. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Protocol

from serving.errors import InvalidInputError, UnknownTaskError
from serving.names import is_digest
from serving.routing.routes import Route

SHORTEST = 12
"""A beginning of this many digits names a version, if no other version of the task begins so. Tables and metrics show
as many."""

_BEGINNING = re.compile(rf"[0-9a-f]{{{SHORTEST},64}}")
_DIGITS = re.compile(r"[0-9a-f]+")
_SHOWN = 80


class Versioned(Protocol):
    """The part of a `serving.store.Task` that names versions."""

    @property
    def name(self) -> str: ...
    @property
    def aliases(self) -> Mapping[str, str]: ...
    @property
    def versions(self) -> Collection[str]: ...


def version_of(task: Versioned, named: str) -> str:
    """The whole digest of the version that a name means.

    A whole digest always means itself. If a name could be an alias or the beginning of a digest, it means the alias.

    Args:
        named: an alias, a digest, or at least the first `SHORTEST` digits of a digest.

    Raises:
        UnknownTaskError: the task has no such alias or version.
        InvalidInputError: the digests of several versions begin so; the message names them.
    """
    if is_alias(task, named):
        return task.aliases[named]
    if _BEGINNING.fullmatch(named):
        return pinned(task, named)
    have = ", ".join(sorted(task.aliases)) or "none"
    short = f"; of a digest, give at least {SHORTEST} digits" if _DIGITS.fullmatch(named) else ""
    raise UnknownTaskError(f"task {task.name!r} has no alias {named[:_SHOWN]!r}; it has: {have}{short}")


def pinned(task: Versioned, named: str) -> str:
    """As `version_of`, but the name cannot be an alias.

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
    """Whether a name means an alias: the task has this alias, and the name is no whole digest."""
    return named in task.aliases and not is_digest(named)


def is_pin(task: Versioned, named: str) -> bool:
    """Whether a name means a digest or its beginning."""
    return bool(_BEGINNING.fullmatch(named)) and not is_alias(task, named)


def with_whole_digests(task: Versioned, route: Route) -> Route:
    """The route as it is stored: aliases stay, and beginnings of digests become whole digests.

    Raises:
        UnknownTaskError: a target, or the shadow, is neither an alias nor a version of the task.
        InvalidInputError: a target could be several versions, or two targets are the same version.
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

"""The versions that would answer a task's callers after a change, compared with those that answer them now. Pure.

Each version is compared with the task's live version, whichever alias or route leads to it. Where a task has no live
version, each is compared with what answers in its place: the version the alias points at, or the route's targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from serving.routing.answer_form import AnswerForm
from serving.routing.routes import Route
from serving.store.table import Task

_LIVE = "live"
_SHORT = 12


@dataclass(frozen=True)
class Comparison:
    """Versions to compare: digest -> what a message calls the version.

    Attributes:
        now: the versions that answer a task's callers. Where there are none, any version is accepted.
        then: the versions that would answer after the change.
    """

    now: Mapping[str, str] = field(default_factory=dict)
    then: Mapping[str, str] = field(default_factory=dict)

    def difference(self, form_of: Callable[[str], AnswerForm | None]) -> str:
        """What callers would notice, in words; empty where they would notice nothing.

        Args:
            form_of: digest -> the form of the version's answers, None where it cannot be known.
        """
        told = [
            _difference(form_of, now, then, one, other)
            for then, other in self.then.items()
            for now, one in self.now.items()
            if now != then
        ]
        return "; ".join(dict.fromkeys(filter(None, told)))


def of_alias(known: Task, alias: str, digest: str) -> Comparison:
    """The comparison for pointing an alias at a version."""
    return Comparison(_answering(known, alias), {digest: f"version {digest[:_SHORT]}"})


def of_promotion(known: Task, alias: str, digest: str) -> Comparison:
    """The comparison for pointing an alias at one of the task's versions.

    Any other digest is not compared, since the store refuses it anyway.
    """
    return of_alias(known, alias, digest) if digest in known.versions else Comparison()


def of_route(known: Task, route: Route) -> Comparison:
    """The comparison for a new route. Targets that the task does not have are left out: the store refuses them anyway.

    The shadow is compared too, because its answers can be checked against the others only in the same form.
    """
    heaviest_first = sorted(route.weights, key=lambda target: (-route.weights[target], target))
    then = _named(known, [*heaviest_first, *([] if route.shadow is None else [route.shadow])])
    return Comparison(_answering(known) or dict(islice(then.items(), 1)), then)


def _answering(known: Task, alias: str = _LIVE) -> dict[str, str]:
    if _LIVE in known.aliases:
        return {known.aliases[_LIVE]: "the live version"}
    if alias in known.aliases:
        return {known.aliases[alias]: f"the version that {alias!r} is now"}
    return _named(known, known.route.weights) if known.route else {}


def _named(known: Task, targets: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for target in targets:
        digest = known.aliases.get(target, target)
        if digest in known.versions:
            found.setdefault(digest, f"version {digest[:_SHORT]}" if target == digest else repr(target))
    return found


def _difference(form_of: Callable[[str], AnswerForm | None], now: str, then: str, one: str, other: str) -> str:
    first, second = form_of(now), form_of(then)
    if first is None or second is None:
        lost, called = (now, one) if first is None else (then, other)
        return f"{called} cannot be compared, for the store holds no readable manifest of {lost}: publish it again"
    return first.difference(second, one, other)

"""Which versions a change would have answer a task's callers, beside those that answer them now. Pure.

All of a task's versions are compared with its live one, whichever alias or route they answer by. Without one, with
what answers in its place: what the alias points at, or the targets of the route.
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
    """Versions to compare, each by its digest and what to call it.

    Attributes:
        now: those that answer a task's callers; none of them: whatever comes is accepted.
        then: those that would answer after the change.
    """

    now: Mapping[str, str] = field(default_factory=dict)
    then: Mapping[str, str] = field(default_factory=dict)

    def difference(self, form_of: Callable[[str], AnswerForm | None]) -> str:
        """What callers would notice, in words; empty where there is nothing.

        Args:
            form_of: a version's form by its digest, None where it cannot be known.
        """
        told = [
            _difference(form_of, now, then, one, other)
            for then, other in self.then.items()
            for now, one in self.now.items()
            if now != then
        ]
        return "; ".join(dict.fromkeys(filter(None, told)))


def of_alias(known: Task, alias: str, digest: str) -> Comparison:
    """Of pointing an alias at a version."""
    return Comparison(_answering(known, alias), {digest: f"version {digest[:_SHORT]}"})


def of_promotion(known: Task, alias: str, digest: str) -> Comparison:
    """Of pointing an alias at one of the task's versions; what is none of them is refused anyway."""
    return of_alias(known, alias, digest) if digest in known.versions else Comparison()


def of_route(known: Task, route: Route) -> Comparison:
    """Of splitting requests anew; targets that are not there are refused anyway.

    A shadow is compared too: of answers in another form it could tell nothing.
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

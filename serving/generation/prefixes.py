"""Texts that begin alike: keys and values of the common tokens are computed once and copied. Pure.

They are copied between texts of one key alone, that is of one version of one task: other weights give other keys and
values. So further continuations of one prompt (`n`) cost no second reading of it, and neither do chats that begin with
the same instructions, while one of them is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serving.generation.sequence import Continuation

LEAST = 16
"""Tokens that are worth a copy, or waiting for one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prefix(Generic[T]):
    """The beginning of a continuation that another one has computed, or will have.

    Attributes:
        tokens: that can be copied now.
        more: tokens that can be copied later, once the other one has computed them.
    """

    of: Continuation[T]
    tokens: int
    more: int

    @property
    def is_worth_waiting(self) -> bool:
        return self.more >= LEAST


def prefix_of(one: Continuation[T], running: Sequence[Continuation[T]]) -> Prefix[T] | None:
    """The longest beginning of a continuation to take from an older one that runs; None: none is worth it.

    The older one may lack some of it. It is not waited for by those that are older, so nobody waits in a circle.

    Args:
        one: of which nothing is computed.
        running: continuations of its key.
    """
    found: Prefix[T] | None = None
    for other in running:
        if other.number >= one.number:
            continue
        # the last known token is computed by itself in any case: it gives the next one
        common = min(_common(one, other), len(one) - 1)
        tokens = min(common, other.computed)
        more = max(min(common, len(other.prompt)) - tokens, 0) if other.most > 1 else 0  # else it ends before
        better = found is None or tokens + more > found.tokens + found.more
        if better and max(tokens, more) >= LEAST:
            found = Prefix(other, tokens, more)
    return found


def _common(one: Continuation[Any], other: Continuation[Any]) -> int:
    """How many tokens both begin with."""
    if one.prompt is other.prompt and not (one.output and other.output):
        return len(one.prompt)
    some, others = [*one.prompt, *one.output], [*other.prompt, *other.output]
    differing = (place for place, (a, b) in enumerate(zip(some, others, strict=False)) if a != b)
    return next(differing, min(len(some), len(others)))

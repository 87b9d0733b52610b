"""Texts that begin alike: keys and values of the common tokens are computed once and copied. Pure.

They are copied between texts of one key alone, that is of one version of one task: other weights give other keys and
values. So further continuations of one prompt (`n`) cost no second reading of it, and neither do chats that begin with
the same instructions, while one of them is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from serving.generation.sequence import Continuation

LEAST = 16
"""Tokens that are worth a copy, or waiting for one."""

_LOOKED_AT = 16
"""Older texts that are compared with a text."""

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
    older = (other for other in running if other.number < one.number)
    for other in islice(older, _LOOKED_AT):
        # the last known token is computed by itself in any case: it gives the next one
        common = min(_common(one, other), len(one) - 1)
        tokens = min(common, other.computed)
        more = common - tokens if other.most > 1 else 0  # else it ends before
        better = found is None or tokens + more > found.tokens + found.more
        if better and max(tokens, more) >= LEAST:
            found = Prefix(other, tokens, more)
    return found


def _common(one: Continuation[Any], other: Continuation[Any]) -> int:
    """How many tokens both prompts begin with; remembered, since prompts do not change."""
    if one.prompt is other.prompt:
        return len(one.prompt)
    if other.number not in one.alike:
        one.alike[other.number] = _alike(one.prompt, other.prompt)
    return one.alike[other.number]


def _alike(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two sequences begin with: by comparing slices, which takes microseconds, where a loop over tokens
    takes milliseconds."""
    if some[:LEAST] != others[:LEAST]:
        return 0
    least, most = LEAST, min(len(some), len(others))
    while least < most:
        middle = (least + most + 1) // 2
        if some[least:middle] == others[least:middle]:
            least = middle
        else:
            most = middle - 1
    return most

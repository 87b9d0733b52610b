"""What the engine knows of a continuation beside its tokens: its task, how to choose tokens, and who waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from serving.generation.pieces import Finish
from serving.generation.sampling import Chosen, Sampler
from serving.generation.sequence import Continuation
from serving.tiers.loaded import Loaded


class Sink(Protocol):
    """Whoever waits for a continuation's tokens. Called on a thread of the engine."""

    def chosen(self, token: Chosen, finish: Finish | None) -> None:
        """The next token was chosen; with `finish` it was the last."""

    def failed(self, error: BaseException) -> None:
        """There will be no further token."""


@dataclass(frozen=True)
class Asked:
    """The engine's part of a continuation.

    Attributes:
        ends: tokens that end it.
        least: tokens before which none ends it.
    """

    task: Loaded
    sampler: Sampler
    ends: frozenset[int]
    least: int
    sink: Sink

    def finish(self, one: Continuation[Asked]) -> Finish | None:
        """Why a continuation has ended with its last token; None: it goes on."""
        if self.sampler.complete:
            return "stop"
        if one.output[-1] in self.ends and len(one.output) > self.least:
            return "stop"
        return "length" if len(one.output) >= one.most else None


Asking = Continuation[Asked]
"""A continuation as the engine runs it."""

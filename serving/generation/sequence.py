"""A sequence: a prompt and its continuation, which live over many steps. Pure: no torch, no clock, no threads."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Continuation(Generic[T]):
    """A prompt that is being continued. Times are the caller's clock, in seconds.

    Attributes:
        key: of the task; keys and values are shared within it alone.
        prompt: its token ids, at least one.
        most: tokens to generate at most.
        payload: the caller's.
        output: tokens that were generated.
        computed: tokens, of the prompt and then of the output, whose keys and values are there.
        past: those keys and values, as the decoder keeps them; None: there are none.
        abandoned: nobody waits for it any more.
        number: its place in the order of arrival.
        alike: how many tokens its prompt and that of an older one begin with, by number.
    """

    key: Hashable
    prompt: Sequence[int]
    most: int
    arrived: float
    deadline: float
    payload: T
    output: list[int] = field(default_factory=list)
    computed: int = 0
    past: Any = None
    abandoned: bool = False
    number: int = -1
    alike: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Tokens that are known: of the prompt and of the output."""
        return len(self.prompt) + len(self.output)

    @property
    def left(self) -> int:
        """Known tokens whose keys and values are not there yet; the step that computes the last gives the next one."""
        return len(self) - self.computed

    @property
    def longest(self) -> int:
        """Tokens whose keys and values are there at the end: the last token of all is never computed."""
        return len(self.prompt) + self.most - 1

    def next_ids(self, tokens: int) -> list[int]:
        """The next known tokens to compute."""
        start, end, prompt = self.computed, self.computed + tokens, len(self.prompt)
        return [*self.prompt[start:end], *self.output[max(start - prompt, 0) : max(end - prompt, 0)]]

    def forget(self) -> None:
        """Give up keys and values. They are computed again, of the prompt and what was generated."""
        self.computed, self.past = 0, None

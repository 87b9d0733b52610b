"""What is counted of a generated text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class GenerationFacts:
    """What is counted of a request's continuations. Times are seconds.

    Attributes:
        started: when the request came, on the caller's clock.
        load: until its task was on the device.
        tokenize: until its prompts were tokens.
        prompt_tokens: of all its prompts.
        generated: tokens of all its continuations.
        first: from the request to the first token; None: there was none.
        gaps: from a continuation's token to its next one.
        texts: its continuations.
        finishes: how those ended that did.
    """

    started: float
    load: float
    tokenize: float
    prompt_tokens: int
    texts: int = 1
    generated: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    finishes: Counter[str] = field(default_factory=Counter)
    _last: dict[int, float] = field(default_factory=dict)

    def note(self, continuation: int, now: float, finish: str | None) -> None:
        """A continuation got a token."""
        self.generated += 1
        if self.first is None:
            self.first = now - self.started
        if continuation in self._last:
            self.gaps.append(now - self._last[continuation])
        self._last[continuation] = now
        if finish is not None:
            self.finishes[finish] += 1

    @property
    def ends(self) -> dict[str, int]:
        """How many continuations ended how; ``unfinished`` are those that failed or that nobody waited for."""
        unfinished = self.texts - self.finishes.total()
        return {**self.finishes, **({"unfinished": unfinished} if unfinished else {})}

    @property
    def stages(self) -> tuple[tuple[str, float], ...]:
        """As a prediction's: until the task was loaded, the prompts encoded, and the first token there."""
        first = () if self.first is None else (("first", self.first),)
        return (("load", self.load), ("tokenize", self.tokenize), *first)

"""A continuation in its grammar: which tokens may come next, computed while the model computes their logits."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from llguidance import LLMatcher

from serving.errors import InvalidInputError

MOST_SECONDS = 1.0
"""For one mask, after which the continuation fails. They take 0.01 to 0.1 ms; hostile patterns take up to 0.1 s."""


@dataclass(frozen=True)
class _Next:
    """What may come next.

    Attributes:
        tokens: one byte a token of the vocabulary, behind which stands the end of a text; 0: it may not be chosen.
        ends: whether the text may end here.
    """

    tokens: bytes
    ends: bool


class GrammarState:
    """The state of one continuation in its grammar. Only its continuation's thread uses it.

    Args:
        matcher: before the first token; it is the state's own from now on.
        threads: that compute masks.
        at: the part of the request that is the grammar, for failures.
    """

    def __init__(self, matcher: LLMatcher, threads: ThreadPoolExecutor, at: str) -> None:
        self._matcher = matcher
        self._threads = threads
        self._at = at
        self._next: Future[_Next] = threads.submit(self._computed)

    def restrict(self, scores: torch.Tensor, ends: Collection[int]) -> torch.Tensor:
        """Scores of which those that may not come next are minus infinity.

        Args:
            scores: float32, (vocabulary of the model,); tokens that the tokenizer does not have may never come.
            ends: tokens that end the text; they may come where the grammar is satisfied.

        Raises:
            InvalidInputError: nothing may come next that has a score, or it takes too long to know.
        """
        following = self._following()
        told = torch.frombuffer(bytearray(following.tokens), dtype=torch.uint8)[:-1] != 0
        allowed = torch.zeros(scores.numel(), dtype=torch.bool)
        known = min(told.numel(), scores.numel())
        allowed[:known] = told[:known]
        if following.ends:
            allowed[list(ends)] = True
        restricted = scores.masked_fill(~allowed, -torch.inf)
        if torch.isneginf(restricted.max()):
            raise InvalidInputError("no token is left that it allows at this place of the text", at=self._at)
        return restricted

    def take(self, token: int) -> bool:
        """Go on behind a token that was chosen. Returns whether the text is complete, so that nothing can follow.

        Raises:
            InvalidInputError: the grammar grows beyond its limits.
        """
        self._matcher.consume_token(token)
        self._check()
        if self._matcher.is_stopped():
            return True
        self._next = self._threads.submit(self._computed)
        return False

    def _following(self) -> _Next:
        if self._next.cancel():  # no thread had time for it yet
            return self._computed()
        try:
            return self._next.result(MOST_SECONDS)
        except TimeoutError:
            raise InvalidInputError("it takes too long to follow in this text; send a simpler one", self._at) from None

    def _computed(self) -> _Next:
        tokens = self._matcher.compute_logit_bias()
        self._check()
        return _Next(tokens, self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0]
            raise InvalidInputError(
                f"it cannot be followed any further in this text ({reason}); send a simpler one", self._at
            )

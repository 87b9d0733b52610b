"""A continuation in its grammar: which tokens may come next, computed while the model computes their logits."""

from __future__ import annotations

import logging
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, thread_time

import numpy as np
import numpy.typing as npt
import torch
from llguidance import LLMatcher

from serving.errors import InvalidInputError

_log = logging.getLogger(__name__)

MOST_SECONDS = 1.0
"""Of a processor that the texts of one request may hold up the engine by their grammar in all, beyond `USUAL_SECONDS` a
token. A mask takes 0.01 to 0.1 ms, while the model computes; of a hostile schema up to 0.02 s."""
USUAL_SECONDS = 0.0005
"""Of one token. 32 texts of ordinary schemas (49,152 tokens, a machine of 2 cores with 4 busy processes) took 0.2 ms on
average."""
_WAITS_FOR_ONE = 10
"""Seconds that the engine waits for a second of a processor: a thread of a busy machine gets but a part of one."""
_MINUS_INFINITY = np.float32(-np.inf).view(np.uint32)
_QUICK_SECONDS = 0.0002
"""A mask that took no longer is not given to a thread the next time: that takes 0.1 to 0.2 ms of a processor itself."""


class Delay:
    """How long the texts of one request have held up the engine by their grammar, in seconds of a processor: what else
    runs on the machine makes no text longer."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.seconds = 0.0
        """Beyond what is usual. Below zero it is saved for later, at most `MOST_SECONDS`."""

    @property
    def left(self) -> float:
        return max(0.0, MOST_SECONDS - self.seconds)

    def allow_a_token(self) -> None:
        self.seconds = max(self.seconds - USUAL_SECONDS, -MOST_SECONDS)

    def check(self) -> None:
        """Raises `InvalidInputError` if the time is up."""
        if not self.left:
            raise self.refusal()

    def refusal(self) -> InvalidInputError:
        return InvalidInputError("it takes too long to follow in this text; send a simpler one", at=self._at)


@dataclass(frozen=True)
class _Next:
    """What may come next.

    Attributes:
        tokens: whether each token of the tokenizer may, (tokens of the tokenizer,).
        ends: whether the text may end here.
    """

    tokens: npt.NDArray[np.bool_]
    ends: bool


class GrammarState:
    """The state of one continuation in its grammar. Only its continuation's thread uses it.

    Args:
        matcher: before the first token; it is the state's own from now on.
        threads: that compute masks.
        at: the part of the request that is the grammar, for failures.
        delay: of all texts of the request; by default the text's own.
    """

    def __init__(self, matcher: LLMatcher, threads: ThreadPoolExecutor, at: str, delay: Delay | None = None) -> None:
        self._matcher = matcher
        self._threads = threads
        self._at = at
        self._delay = delay or Delay(at)
        self._took = 0.0
        self._restricted = np.empty(0, np.float32)
        self._next: Future[_Next] | None = threads.submit(self._computed)

    def restrict(self, scores: torch.Tensor, ends: Collection[int]) -> torch.Tensor:
        """Scores of which those that may not come next are minus infinity. They are good until the next call.

        Args:
            scores: float32, (vocabulary of the model,); tokens that the tokenizer does not have may never come.
            ends: tokens that end the text; they may come where the grammar is satisfied.

        Raises:
            InvalidInputError: nothing may come next that has a score, or it takes too long to know.
        """
        self._delay.allow_a_token()
        self._delay.check()
        following = self._following()
        allowed = _of_size(following.tokens, scores.numel())
        if following.ends:
            allowed[list(ends)] = True
        # by numpy: torch wakes all its threads for so many numbers, which on a busy machine takes milliseconds
        restricted = self._restricted if len(self._restricted) == len(allowed) else np.empty(len(allowed), np.float32)
        self._restricted = _barred(scores.numpy(), allowed, restricted)
        if np.isneginf(restricted.max()):
            raise InvalidInputError(
                "no token is left that it allows at this place of the text; beside it, min_tokens and stop_token_ids "
                "may leave too few",
                at=self._at,
            )
        return torch.from_numpy(restricted)

    def take(self, token: int) -> bool:
        """Go on behind a token that was chosen. Returns whether the text is complete, so that nothing can follow.

        Raises:
            InvalidInputError: the grammar grows beyond its limits, or it takes too long.
        """
        self._delay.check()
        began = thread_time()
        self._matcher.consume_token(token)
        self._delay.seconds += thread_time() - began
        self._check()
        if self._matcher.is_stopped():
            return True
        self._next = None if self._took <= _QUICK_SECONDS else self._threads.submit(self._computed)
        return False

    def _following(self) -> _Next:
        if self._next is None or self._next.cancel():  # it is quick, or no thread had time for it yet
            following = self._computed()
            self._delay.seconds += self._took
            return following
        began = perf_counter()
        try:
            following = self._next.result(_WAITS_FOR_ONE * self._delay.left)
        except TimeoutError:
            raise self._delay.refusal() from None
        self._delay.seconds += min(self._took, perf_counter() - began)
        return following

    def _computed(self) -> _Next:
        began = thread_time()
        told = self._matcher.compute_logit_bias()
        self._took = thread_time() - began
        self._check()
        tokens = np.frombuffer(told, np.uint8)[:-1] != 0  # behind all tokens stands the end of a text
        return _Next(tokens, self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            told = self._matcher.get_error()
            _log.warning("a text cannot follow its grammar any further: %s", told)
            raise InvalidInputError(f"it cannot be followed any further in this text: {failure(told)}", self._at)


def failure(told: str) -> str:
    """What llguidance says of a text that it cannot follow, as a request's sender should read it."""
    if "Too many items" in told or "Current row has" in told:
        return "more may come next than is followed; send fewer optional properties or alternatives in one place"
    if "panic" in told:
        return "the task's tokenizer fails on what must come next; send another grammar"
    return (
        "no token of the task's tokenizer spells what must come next, or it grew beyond its limits; send a simpler one"
    )


def _barred(
    scores: npt.NDArray[np.float32], allowed: npt.NDArray[np.bool_], out: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Scores where they are allowed, minus infinity elsewhere, in `out`.

    Adding takes 0.02 ms for 49,152 tokens. Choosing takes ten times as long where both alternate, since a processor
    guesses which comes next.
    """
    bits = out.view(np.uint32)
    np.multiply(~allowed, _MINUS_INFINITY, out=bits, dtype=np.uint32)  # of 0.0, or of minus infinity
    return np.add(scores, out, out=out)


def _of_size(tokens: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """As many as the model has logits, whose tokenizer may have fewer tokens, or more."""
    if len(tokens) == size:
        return tokens
    resized = np.zeros(size, np.bool_)
    resized[: len(tokens)] = tokens[:size]
    return resized

"""How the next token is chosen from logits: each continuation by its own settings and its own random numbers.

The settings are those of Transformers' `generate`, in its order; OpenAI's penalties come after the repetition penalty.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from ken_core.generation_settings import GenerationSettings
from serving.errors import InternalError
from serving.generation.query import SamplingParameters
from serving.grammar.state import GrammarState

_FIRST_TRIED = 1024
"""Of the likeliest tokens, among which those of a `top_p` usually are."""
_COLDEST = 1e-6
"""At lower temperatures the likeliest token is taken, as sampling would: divided by them, logits overflow."""


@dataclass(frozen=True)
class Chosen:
    """A token that was chosen.

    Attributes:
        logprob: its log-probability by the logits themselves; None unless asked for.
        likeliest: ids and log-probabilities of the likeliest tokens, as many as were asked for.
        completes: whether the text is complete with it, since its grammar lets nothing follow.
    """

    id: int
    logprob: float | None = None
    likeliest: Sequence[tuple[int, float]] = ()
    completes: bool = False


@dataclass(frozen=True)
class Sampling:
    """Settings that have been decided. Numbers that change nothing are None."""

    temperature: float = 0.0
    """0: the likeliest token is taken, and what follows here does not matter."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, asked: SamplingParameters, task: GenerationSettings, sampled: bool) -> Sampling:
        """What the request asks for; else what the task's checkpoint says; else what the protocol does.

        Args:
            sampled: whether tokens are sampled where neither request nor task says anything.
        """
        temperature = asked.temperature
        if temperature is None:
            usual = 1.0 if task.temperature is None else task.temperature
            temperature = usual if task.samples or sampled else 0.0
        if temperature < _COLDEST:
            temperature = 0.0
        top_k = task.top_k if asked.top_k is None else asked.top_k
        top_p = task.top_p if asked.top_p is None else asked.top_p
        penalty = task.repetition_penalty if asked.repetition_penalty is None else asked.repetition_penalty
        return cls(
            temperature,
            top_k if top_k is not None and top_k > 0 else None,
            top_p if top_p is not None and top_p < 1 else None,
            (task.min_p if asked.min_p is None else asked.min_p) or None,
            penalty if penalty is not None and penalty != 1 else None,
            asked.presence_penalty or 0.0,
            asked.frequency_penalty or 0.0,
            {token: bias for token, bias in (asked.logit_bias or {}).items() if bias},
        )


class Sampler:
    """Chooses the tokens of one continuation. Nothing in it is shared with another one.

    Attributes:
        complete: whether the grammar lets nothing follow the last token that was chosen.

    Args:
        prompt: ids, which the repetition penalty counts as well.
        seed: None: a random one.
        logprobs: how many likeliest tokens to tell beside the chosen one; None: no probabilities.
        ends: tokens that end the text, and may not be chosen before so many were generated: (their ids, the number).
        grammar: that the text follows.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        seed: int | None = None,
        logprobs: int | None = None,
        ends: tuple[Sequence[int], int] = ((), 0),
        grammar: GrammarState | None = None,
    ) -> None:
        self._sampling = sampling
        self._prompt = prompt
        self._logprobs = logprobs
        self._ends, self._least = ends
        self._grammar = grammar
        self.complete = False
        self._counts: Counter[int] = Counter()
        self._generator = torch.Generator().manual_seed(secrets.randbits(63) if seed is None else seed % (1 << 64))
        self._penalty = _penalty(sampling)
        self._biased = torch.tensor(list(sampling.bias), dtype=torch.int64)
        self._biases = torch.tensor(list(sampling.bias.values()), dtype=torch.float32)

    def __call__(self, logits: torch.Tensor, output: Sequence[int]) -> Chosen:
        """Choose the next token.

        Args:
            logits: float32 on the CPU, one for each token of the vocabulary.
            output: tokens that were generated before.

        Raises:
            InternalError: there is no largest logit, since the model's numbers overflow.
            InvalidInputError: the grammar lets no token follow, or cannot be followed within its limits.
        """
        if not np.isfinite(logits.numpy().max()):  # by numpy: torch wakes all its threads for so many numbers
            raise InternalError("the model's answer is not a number; its weights overflow on this text")
        scores = self._processed(logits, output)
        if self._grammar is not None:
            scores = self._grammar.restrict(scores, self._ends)
        if self._sampling.temperature == 0:
            token = int(scores.numpy().argmax())
        else:
            ids, scores = _candidates(scores, self._sampling)
            token = int(ids[_drawn(scores, self._generator)])
        self._counts[token] += 1
        if self._grammar is not None and token not in self._ends:
            self.complete = self._grammar.take(token)
        return self._told(token, logits)

    def _processed(self, logits: torch.Tensor, output: Sequence[int]) -> torch.Tensor:
        """The logits with bias and penalties; they themselves where there are none."""
        told = self._sampling
        blocked = self._ends if len(output) < self._least else ()
        if not (told.bias or self._penalty or told.presence_penalty or told.frequency_penalty or blocked):
            return logits
        scores = logits.clone()
        if told.bias:
            scores[self._biased] += self._biases
        if self._penalty is not None:
            scores = self._penalty(torch.tensor([[*self._prompt, *output]]), scores[None])[0]
        if self._counts and (told.presence_penalty or told.frequency_penalty):
            ids = torch.tensor(list(self._counts))
            times = torch.tensor(list(self._counts.values()), dtype=scores.dtype)
            scores[ids] -= told.presence_penalty + told.frequency_penalty * times
        if blocked:
            scores[list(blocked)] = -torch.inf
        return scores

    def _told(self, token: int, logits: torch.Tensor) -> Chosen:
        if self._logprobs is None:
            return Chosen(token, completes=self.complete)
        shares = logits.log_softmax(dim=-1)
        most = shares.topk(min(self._logprobs, shares.numel()))
        likeliest = tuple(zip(most.indices.tolist(), most.values.tolist(), strict=True))
        return Chosen(token, float(shares[token]), likeliest, self.complete)


def _penalty(told: Sampling) -> RepetitionPenaltyLogitsProcessor | None:
    return None if told.repetition_penalty is None else RepetitionPenaltyLogitsProcessor(told.repetition_penalty)


def _candidates(scores: torch.Tensor, told: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may be drawn, and their scores: what Transformers' warpers leave, in their order.

    They sort the whole vocabulary, which takes longer than the model (49,152 tokens: 9 ms on one core). Here most of it
    is left out first.
    """
    scores = scores / told.temperature
    ids = torch.arange(scores.numel())
    if told.top_k is not None and told.top_k < scores.numel():
        ids = torch.nonzero(scores >= scores.topk(told.top_k).values[-1])[:, 0]
        scores = scores[ids]
    if told.top_p is not None:
        kept = _nucleus(scores, told.top_p)
        ids, scores = ids[kept], scores[kept]
    if told.min_p is not None:
        shares = scores.softmax(dim=-1)
        kept = shares >= told.min_p * shares.max()
        ids, scores = ids[kept], scores[kept]
    return ids, scores


def _nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Places of the likeliest tokens that together have a probability of `top_p`: those before which there is less."""
    shares = scores.softmax(dim=-1)
    for most in (_FIRST_TRIED, scores.numel()):
        found = shares.topk(min(most, scores.numel()))
        before = found.values.cumsum(dim=-1) - found.values
        if before[-1] + found.values[-1] >= top_p:
            break
    return found.indices[: max(1, int((before < top_p).sum()))]


def _drawn(scores: torch.Tensor, generator: torch.Generator) -> int:
    """A place drawn by its share, with one random number."""
    sums = scores.double().softmax(dim=-1).cumsum(dim=-1)
    point = torch.rand(1, dtype=torch.float64, generator=generator) * sums[-1]
    return min(int(torch.searchsorted(sums, point, right=True)), scores.numel() - 1)

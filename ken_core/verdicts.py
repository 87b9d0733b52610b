"""What judging found of a delta, beside its fine-tune: its score, and what may be promised of it. Pure.

An answer is right or wrong, and a delta loses some (`ken_core.promise`). A language model says something of every token
of a text; what its tokens lose is counted by text, since the tokens of one text depend on each other
(`ken_core.text_bounds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ken_core import promise, text_bounds
from ken_core.errors import CalibrationError
from ken_core.manifest import Metric
from ken_core.promise import Paired

Right = npt.NDArray[np.bool_]
"""Whether each example was answered correctly, shape (examples,)."""


_SPEECHLESS = 700.0
"""Nats a token, the most that is counted, since its exponential is about the largest float."""


@dataclass(frozen=True, eq=False)
class TokenAnswers:
    """What a language model says of the tokens of texts. All arrays have the shape (tokens,).

    Attributes:
        best: the likeliest token at each place, int64.
        losses: how surprised the model is by the token that stands there, in nats, float64.
        text: the number of the text that the token belongs to, from 0 on; no text is without tokens.
    """

    best: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float64]
    text: npt.NDArray[np.int64]


Judgement = Right | TokenAnswers
"""What a judge says of a model."""


class Verdict(Protocol):
    """A delta's answers beside its fine-tune's. A loss has the unit of the tolerance: a share."""

    @property
    def examples(self) -> int:
        """How many examples, or texts, judged."""

    @property
    def independent(self) -> int:
        """As how many even examples they count: less where a few texts have most of the tokens."""

    @property
    def score(self) -> float: ...

    @property
    def tuned_score(self) -> float: ...

    @property
    def counts(self) -> dict[str, int]:
        """How many answers were lost and won, where answers are counted."""

    @property
    def told(self) -> str:
        """What the delta loses of these examples, for a sentence."""

    def upper_bound(self, confidence: float) -> float:
        """The least loss that is not exceeded with this confidence."""

    def holds(self, tolerance: float, confidence: float) -> bool:
        """Whether the loss can be promised to be at most `tolerance`."""

    def needed(self, tolerance: float, confidence: float) -> int | None:
        """About how many examples are likely to make the promise; None: no number of them is."""


@dataclass(frozen=True)
class AnswersLost:
    """A loss of right answers. Attributes: `right`, how many the fine-tune gives."""

    found: Paired
    right: int

    @property
    def examples(self) -> int:
        return self.found.examples

    @property
    def independent(self) -> int:
        return self.examples

    @property
    def score(self) -> float:
        return (self.right - self.found.lost + self.found.won) / self.examples

    @property
    def tuned_score(self) -> float:
        return self.right / self.examples

    @property
    def counts(self) -> dict[str, int]:
        return {"lost": self.found.lost, "won": self.found.won}

    @property
    def told(self) -> str:
        return f"loses {self.found.lost} and wins {self.found.won} of {self.examples:,} answers"

    def upper_bound(self, confidence: float) -> float:
        return promise.upper_bound(self.found, confidence)

    def holds(self, tolerance: float, confidence: float) -> bool:
        return promise.holds(self.found, tolerance, confidence)

    def needed(self, tolerance: float, confidence: float) -> int | None:
        return promise.examples_needed(self.found, tolerance, confidence)


@dataclass(frozen=True, eq=False)
class TokensChanged:
    """The share of a text's likeliest tokens that are other than the fine-tune's; the loss is its mean over texts.

    Attributes:
        shares: of each text, shape (texts,), float64.
    """

    shares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, tuned: TokenAnswers, delta: TokenAnswers) -> TokensChanged:
        return cls(np.bincount(tuned.text, tuned.best != delta.best) / np.bincount(tuned.text))

    @property
    def examples(self) -> int:
        return self.shares.size

    @property
    def independent(self) -> int:
        return self.examples

    @property
    def score(self) -> float:
        return 1.0 - float(self.shares.mean())

    @property
    def tuned_score(self) -> float:
        return 1.0

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def told(self) -> str:
        return f"changes {100 * self.shares.mean():.3g} % of a text's likeliest tokens"

    def upper_bound(self, confidence: float) -> float:
        return text_bounds.mean_at_most(self.shares, confidence)

    def holds(self, tolerance: float, confidence: float) -> bool:
        return self.upper_bound(confidence) <= tolerance

    def needed(self, tolerance: float, confidence: float) -> int | None:
        most = text_bounds.texts_for_mean(self.shares, tolerance, confidence)
        return None if most is None else max(most, text_bounds.least_texts_for_mean(tolerance, confidence))


@dataclass(frozen=True, eq=False)
class PerplexityRisen:
    """How far the perplexity rises above the fine-tune's, as a share of it.

    Attributes:
        risen: what the losses of each text's tokens add up to, less the fine-tune's, in nats, shape (texts,), float64.
        tokens: of each text, shape (texts,), int64.
        tuned_loss: the fine-tune's mean loss over all tokens, in nats.
    """

    risen: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    tuned_loss: float

    @classmethod
    def of(cls, tuned: TokenAnswers, delta: TokenAnswers) -> PerplexityRisen:
        risen = np.bincount(tuned.text, delta.losses - tuned.losses).astype(np.float64)
        return cls(risen, np.bincount(tuned.text), float(tuned.losses.mean()))

    @property
    def examples(self) -> int:
        return self.tokens.size

    @property
    def independent(self) -> int:
        return int(self.tokens.sum() ** 2 / (self.tokens**2).sum() + 1e-9)

    @property
    def score(self) -> float:
        return _exp(self.tuned_loss + float(self.risen.sum() / self.tokens.sum()))

    @property
    def tuned_score(self) -> float:
        return _exp(self.tuned_loss)

    @property
    def counts(self) -> dict[str, int]:
        return {}

    @property
    def told(self) -> str:
        return f"has a perplexity of {self.score:.4g}, the fine-tune {self.tuned_score:.4g}"

    def upper_bound(self, confidence: float) -> float:
        return _exp(text_bounds.ratio_at_most(self.risen, self.tokens, confidence)) - 1

    def holds(self, tolerance: float, confidence: float) -> bool:
        return self.independent >= text_bounds.FEWEST_TEXTS and self.upper_bound(confidence) <= tolerance

    def needed(self, tolerance: float, confidence: float) -> int | None:
        return text_bounds.texts_for_ratio(self.risen, self.tokens, float(np.log1p(tolerance)), confidence)


def _exp(loss: float) -> float:
    return exp(min(loss, _SPEECHLESS))


def _with_numbers(found: TokenAnswers) -> TokenAnswers:
    """Answers in which NaN and infinity are the worst that can be said, and no token at all."""
    known = np.isfinite(found.losses)
    losses = np.minimum(np.where(known, found.losses, _SPEECHLESS), _SPEECHLESS)
    return TokenAnswers(np.where(known, found.best, -1), losses, found.text)


def verdict(metric: Metric, tuned: Judgement, delta: Judgement) -> Verdict:
    """Compare what one judge said of a fine-tune and of a delta.

    Raises:
        CalibrationError: the judge returned something else than one bool for each example, or other texts.
    """
    if isinstance(tuned, TokenAnswers) and isinstance(delta, TokenAnswers):
        if not np.array_equal(tuned.text, delta.text):
            raise CalibrationError("a judge answered other texts for the delta than for the fine-tune")
        if not np.isfinite(tuned.losses).all():
            raise CalibrationError("the fine-tune answered with NaN or infinity, so nothing can be judged by it")
        delta = _with_numbers(delta)
        return (PerplexityRisen if metric == "perplexity" else TokensChanged).of(tuned, delta)
    ours, theirs = checked(tuned), checked(delta)
    if ours.size != theirs.size:
        raise CalibrationError(f"a judge returned {theirs.size}; expected {ours.size} bools, as for the fine-tune")
    return AnswersLost(Paired.of(ours, theirs), int(ours.sum()))


def unchanged(metric: Metric, found: Judgement) -> Verdict:
    """The verdict on a delta that answers as the fine-tune does."""
    return verdict(metric, found, found)


def least_examples(metric: Metric, found: Judgement, tolerance: float | None, confidence: float) -> int:
    """How many examples it takes to promise `tolerance` if nothing is lost of any; None: to promise anything."""
    if metric == "perplexity":
        return text_bounds.FEWEST_TEXTS
    if tolerance is None:
        return 1
    if isinstance(found, TokenAnswers):
        return text_bounds.least_texts_for_mean(tolerance, confidence)
    return promise.least_examples(tolerance, confidence)


def checked(found: Judgement) -> Right:
    """What a judge of answers returned, if it is of the form that it should have.

    Raises:
        CalibrationError: it is no array of bools, shape (examples,).
    """
    if not isinstance(found, np.ndarray) or found.dtype != bool or found.ndim != 1 or not found.size:
        what = f"{found.dtype} of shape {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise CalibrationError(f"a judge returned {what}; expected one bool for each example")
    return found

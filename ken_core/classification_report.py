"""How good a classifier's answers are: accuracy, F1 and calibration error, each with an interval. Pure.

The calibration error is the expected calibration error of Guo et al. 2017 (arXiv 1706.04599), with 15 bins. Accuracy's
interval is Wilson's (1927, JASA 22:209-212). The others come from the bootstrap: the basic interval of Davison and
Hinkley (1997, Bootstrap Methods and their Application, 5.2), which takes off the bias that figures of few examples
have, widened where it would not hold the figure itself. Where all answers are right, or all wrong, resamples tell
nothing of the others that there may be; then both intervals follow from that of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ken_core.errors import DataError

Numbers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

BINS = 15
RESAMPLES = 1000
_AT_ONCE = 1 << 20
"""Examples of resamples that are held at once."""


@dataclass(frozen=True)
class Interval:
    """A figure, and the bounds between which the figure of all such text lies with some confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelScore:
    """How well one label is found.

    Attributes:
        precision: the share of its answers that are right; 0 where it never is the answer.
        recall: the share of its examples that are found; 0 where there is no example.
        f1: the harmonic mean of the two.
        examples, answers: how many examples have the label, and how often it is the answer.
    """

    label: str
    precision: float
    recall: float
    f1: float
    examples: int
    answers: int


@dataclass(frozen=True)
class ClassificationReport:
    """Figures of a classifier on labelled examples.

    Attributes:
        confidence: of the intervals.
        macro_f1: the mean of F1 over all labels that an example has or that are an answer, as scikit-learn's
            ``f1_score(average="macro")``.
        calibration_error: the mean difference between how sure answers are and how many of them are right.
    """

    examples: int
    confidence: float
    accuracy: Interval
    macro_f1: Interval
    calibration_error: Interval
    labels: tuple[LabelScore, ...]


def report(
    truth: Sequence[int],
    answers: Sequence[int],
    probabilities: Sequence[float],
    labels: Sequence[str],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> ClassificationReport:
    """Judge answers by their labels.

    Args:
        truth, answers: numbers of labels, one for each example.
        probabilities: of the answers, from 0 to 1.
        labels: names by number.
        confidence: of the intervals, above 0 and below 1.
        seed: of the bootstrap.

    Raises:
        DataError: there is no example.
    """
    if not truth:
        raise DataError("a classifier is judged on examples, and there is none")
    sample = _Sample.of(truth, answers, probabilities, len(labels))
    counts, right = sample.counts(), int(sample.right.sum())
    accuracy = wilson(right, len(truth), confidence)
    f1, error = float(counts.macro_f1[0]), float(counts.calibration_error[0])
    if 0 < right < len(truth):
        drawn = sample.resampled(np.random.default_rng(seed))
        of_f1, of_error = _basic(f1, drawn.macro_f1, confidence), _basic(error, drawn.calibration_error, confidence)
    else:
        of_f1 = Interval(f1, accuracy.low, accuracy.high)  # with such answers F1 is the accuracy
        of_error = _by_accuracy(error, float(np.mean(probabilities)), accuracy)
    return ClassificationReport(
        examples=len(truth),
        confidence=confidence,
        accuracy=accuracy,
        macro_f1=of_f1,
        calibration_error=of_error,
        labels=counts.of_labels(labels),
    )


def wilson(right: int, examples: int, confidence: float) -> Interval:
    """The share of right answers, with Wilson's score interval."""
    share, z = right / examples, NormalDist().inv_cdf((1 + confidence) / 2)
    spread = z * z / examples
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / examples + spread / (4 * examples)) ** 0.5 / (1 + spread)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(frozen=True)
class _Counts:
    """Sums over the examples of some samples, one row a sample.

    Attributes:
        examples, answers, hits: by label: examples that have it, answers that are it, and those that are right; shape
            (samples, labels).
        gaps: by bin: probabilities of answers, less the number of right ones; shape (samples, bins).
    """

    examples: Numbers
    answers: Numbers
    hits: Numbers
    gaps: Doubles

    @property
    def f1(self) -> Doubles:
        """By label; 0 where it neither is an answer nor an example has it."""
        return _divided(2 * self.hits, self.examples + self.answers)

    @property
    def macro_f1(self) -> Doubles:
        occurring = (self.examples + self.answers > 0).sum(axis=1)
        return np.asarray(self.f1.sum(axis=1) / occurring)

    @property
    def calibration_error(self) -> Doubles:
        return np.asarray(np.abs(self.gaps).sum(axis=1) / self.examples.sum(axis=1))

    def of_labels(self, labels: Sequence[str]) -> tuple[LabelScore, ...]:
        """Of the first sample."""
        precision, recall = _divided(self.hits, self.answers)[0], _divided(self.hits, self.examples)[0]
        return tuple(
            LabelScore(
                label, float(precision[i]), float(recall[i]), float(self.f1[0, i]),
                int(self.examples[0, i]), int(self.answers[0, i]),
            )
            for i, label in enumerate(labels)
        )  # fmt: skip


@dataclass(frozen=True)
class _Sample:
    """What is known of each example; arrays of shape (examples,)."""

    truth: Numbers
    answers: Numbers
    right: npt.NDArray[np.bool_]
    bins: Numbers
    gaps: Doubles
    labels: int

    @classmethod
    def of(cls, truth: Sequence[int], answers: Sequence[int], probabilities: Sequence[float], labels: int) -> _Sample:
        expected, found = np.asarray(truth, np.int64), np.asarray(answers, np.int64)
        sure = np.asarray(probabilities, np.float64)
        right = expected == found
        bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)  # bin m is ((m - 1) / M, m / M]
        return cls(expected, found, right, bins, sure - right, labels)

    def counts(self, drawn: Numbers | None = None) -> _Counts:
        """Sums over samples of the examples, given by places, shape (samples, examples); None: over all examples."""
        places = np.arange(len(self.truth))[None] if drawn is None else drawn
        one = np.ones(len(self.truth))
        by_label = (self._summed(places, *of, self.labels) for of in ((self.truth, one), (self.answers, one),
                    (self.truth, self.right.astype(np.float64))))  # fmt: skip
        examples, answers, hits = (sums.astype(np.int64) for sums in by_label)
        return _Counts(examples, answers, hits, self._summed(places, self.bins, self.gaps, BINS))

    def resampled(self, random: np.random.Generator) -> _Counts:
        """Sums over resamples of as many examples, drawn with replacement."""
        many = len(self.truth)
        step = max(1, _AT_ONCE // many)
        parts = [
            self.counts(random.integers(0, many, (min(step, RESAMPLES - start), many)))
            for start in range(0, RESAMPLES, step)
        ]
        return _Counts(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Counts.__annotations__))

    def _summed(self, places: Numbers, groups: Numbers, values: Doubles, count: int) -> Doubles:
        """Sums of values by group in each sample, shape (samples, count)."""
        keys = groups[places] + count * np.arange(len(places))[:, None]
        sums = np.bincount(keys.ravel(), values[places].ravel(), count * len(places))
        return np.asarray(sums.reshape(-1, count), np.float64)


def _divided(part: Numbers, whole: Numbers) -> Doubles:
    return np.asarray(np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0))


def _basic(value: float, drawn: Doubles, confidence: float) -> Interval:
    """The basic bootstrap interval of a figure from 0 to 1, and at least the figure itself."""
    low, high = 2 * value - np.quantile(drawn, [(1 + confidence) / 2, (1 - confidence) / 2])
    return Interval(value, max(0.0, min(value, float(low))), min(1.0, max(value, float(high))))


def _by_accuracy(value: float, sure: float, accuracy: Interval) -> Interval:
    """The calibration error is at least the distance of the accuracy from the mean probability; that distance within
    the accuracy's interval, and at least the figure itself."""
    ends = [abs(sure - accuracy.low), abs(sure - accuracy.high)]
    least = 0.0 if accuracy.low <= sure <= accuracy.high else min(ends)
    return Interval(value, min(value, least), max(value, *ends))

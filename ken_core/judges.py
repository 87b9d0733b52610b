"""Text in two parts: one chooses between deltas, the other judges the one that was chosen. No text is in both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from ken_core.checkpoint import Checkpoint
from ken_core.divergence import at_least_zero
from ken_core.errors import CalibrationError
from ken_core.evaluate import classify, label_ids, logits
from ken_core.examples import Example
from ken_core.held_out import divide
from ken_core.labels import Label
from ken_core.manifest import Metric, Reading
from ken_core.tokenization import Encoder, Input, Readable
from ken_core.verdicts import Judgement

Judge = Callable[[PreTrainedModel], Judgement]
"""Answers the judging examples with a model, always in the same order, and says which answers are right; or, of a
language model, what it says of every token."""
Distance = Callable[[PreTrainedModel], float]
"""Answers the choosing examples with a model, and says how far the answers are from the fine-tune's."""

CHOOSING_SHARE = 0.2
"""Of the texts. Choosing compares answers that hardly differ by chance, so it needs fewer of them than judging."""


@dataclass(frozen=True)
class Judges:
    """How deltas are chosen, and how the chosen ones are judged.

    `ken_core.calibrate` keeps its promise only if both use different examples, and the judging ones are drawn
    independently from the text that the promise is about.

    Attributes:
        judge: says which answers to the judging examples are right; or what a language model says of their tokens.
        distance: how far a model's answers to the choosing examples are from the fine-tune's; of two deltas, the one
            with the smaller distance is chosen. A share of wrong answers will do; a divergence is less noisy.
        choosing: number of choosing examples, for the record.
        texts: of the choosing examples, or their rows, to fit kept values to (`ken_core.scales`); none: nothing is
            fitted.
        metric: what the record calls the share of right answers; of tokens, what is judged of them.
        reading: how long the examples of a language model are read, for the record.
    """

    judge: Judge
    distance: Distance
    choosing: int
    texts: tuple[Readable, ...] = ()
    metric: Metric = "accuracy"
    reading: Reading | None = None


def judges_for(
    tuned: Checkpoint, texts: Sequence[Input], labels: Sequence[Label] | None = None, seed: int = 0
) -> Judges:
    """Judges of a text classifier: a fifth of the distinct texts chooses, the others judge.

    With labels, both parts have the same share of each label, and an answer is right if it is the label. Without
    labels, an answer is right if it is the fine-tune's, and the metric is called `agreement`. The distance is the mean
    Kullback-Leibler divergence of the answers from the fine-tune's, in nats. An example that occurs again is counted
    once.

    Args:
        seed: the same texts and the same seed give the same parts.

    Raises:
        CalibrationError: the fine-tune is no classifier with one answer per text, or there are fewer than two texts.
        DataError: there is a label that the fine-tune does not know.
    """
    check_classifier(tuned)
    choosing, judging = divide(texts, labels, CHOOSING_SHARE, seed)
    choosing, judging = choosing or judging[:1], judging if choosing else judging[1:]
    if not judging:
        raise CalibrationError("found one distinct text; expected two or more, one to choose by and one to judge by")
    encoder = Encoder(tuned, tuned.config, {})
    shown = tuple(texts[i] for i in choosing)
    judged = [texts[i] for i in judging]
    if labels is None:
        judge = judge_agreement(encoder, judged, tuned.model)
    else:
        label_ids(tuned.model, [_example(text, label) for text, label in zip(texts, labels, strict=True)])
        judge = judge_labels(encoder, [_example(texts[i], labels[i]) for i in judging])
    metric: Metric = "agreement" if labels is None else "accuracy"
    return Judges(judge, divergence(encoder, shown, tuned.model), len(shown), shown, metric)


def judge_labels(encoder: Encoder, examples: Sequence[Example]) -> Judge:
    """A judge that calls a classifier's answer right if it is the example's label."""
    texts = [e.input for e in examples]
    return lambda model: classify(model, encoder, texts) == label_ids(model, examples)


def judge_agreement(encoder: Encoder, texts: Sequence[Input], tuned: PreTrainedModel) -> Judge:
    """A judge that calls a classifier's answer right if the fine-tune gives the same answer."""
    expected = classify(tuned, encoder, texts)
    return lambda model: classify(model, encoder, texts) == expected


def divergence(encoder: Encoder, texts: Sequence[Input], tuned: PreTrainedModel) -> Distance:
    """The mean Kullback-Leibler divergence of a classifier's answers from the fine-tune's, in nats."""
    expected = logits(tuned, encoder, texts).log_softmax(dim=1)

    def distance(model: PreTrainedModel) -> float:
        found = logits(model, encoder, texts).log_softmax(dim=1)
        return at_least_zero(float(kl_div(found, expected, log_target=True, reduction="batchmean")))

    return distance


def lines_for(judging: int) -> int:
    """How many distinct lines of text give so many judging examples by `judges_for`."""
    return int(np.ceil(judging / (1 - CHOOSING_SHARE)))


def _example(text: Input, label: Label) -> Example:
    return Example(text[0], label, text[1]) if isinstance(text, tuple) else Example(text, label)


def check_classifier(tuned: Checkpoint) -> None:
    """Check that a fine-tune gives each text one of several labels.

    Raises:
        CalibrationError: it does not.
    """
    found = type(tuned.model).__name__
    own = "For other kinds call ken_core.calibrate with a judge of your own"
    if not found.endswith("ForSequenceClassification"):
        headless = ", and a language model that was saved without its head is none" * found.endswith("Model")
        raise CalibrationError(
            f"{tuned.folder} is a {found}; labels and plain texts judge sequence classifiers and causal language "
            f"models only{headless}. {own}"
        )
    problem = getattr(tuned.config, "problem_type", None)
    if problem in ("regression", "multi_label_classification") or len(tuned.config.id2label or {}) < 2:
        raise CalibrationError(
            f"{tuned.folder} gives scores ({problem or '1 label'}); expected one of two or more labels. {own}"
        )

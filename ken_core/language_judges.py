"""Judges of language models: what a delta says of the tokens that its fine-tune learned, beside the fine-tune.

A fifth of the distinct examples chooses, the others judge, as for classifiers (`ken_core.judges`). Of an example, the
tokens count that are learned of it: all of a text, of the others what the model is to say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ken_core.checkpoint import Checkpoint
from ken_core.divergence import at_least_zero
from ken_core.errors import CalibrationError, DataError
from ken_core.held_out import divide
from ken_core.judges import CHOOSING_SHARE, Distance, Judge, Judges
from ken_core.language_examples import LanguageExample, Text, key_of
from ken_core.language_loss import learned_logits, passes_of
from ken_core.learned_rows import LONGEST, LearnedRow, RowMaker, end_ids
from ken_core.manifest import Reading, task_kind
from ken_core.token_divergence import Said
from ken_core.tokenization import Encoded, Encoder
from ken_core.verdicts import TokenAnswers

_MOST_TOKENS = 1 << 13
"""Of the choosing examples. More of them would change a mean over tokens little, and every delta that is tried reads
them; what the fine-tune says of them is held meanwhile, 64 MiB."""

LanguageMetric = Literal["agreement", "perplexity"]


def judges_language(tuned: Checkpoint) -> bool:
    """Whether a fine-tune is a language model, which these judges are for."""
    return task_kind(type(tuned.model).__name__) == "text-generation"


@dataclass(frozen=True)
class LanguageJudges:
    """Judges, and what they read.

    Attributes:
        reading: how long the examples were read.
        at_limit: whether the model reads no more tokens at once.
        repeated: how many examples said the same as another one.
    """

    judges: Judges
    reading: Reading
    at_limit: bool
    repeated: int


def language_judges_for(
    tuned: Checkpoint,
    examples: Sequence[LanguageExample],
    metric: LanguageMetric = "perplexity",
    seed: int = 0,
    longest: int = LONGEST,
) -> LanguageJudges:
    """Judges of a causal language model.

    By perplexity, a delta loses what share its perplexity is above the fine-tune's on all judging tokens. By agreement,
    it loses the share of a text's likeliest next tokens that are other than the fine-tune's, the mean over texts; all
    tokens before are those of the example. The distance is the mean Kullback-Leibler divergence from what the fine-tune
    says of each token, in nats (`ken_core.token_divergence`), on as many choosing examples, drawn at random, as have
    8,192 tokens; kept values are fitted to more of them. An example that occurs again is counted once.

    Args:
        seed: the same examples and the same seed give the same parts.
        longest: tokens of a row; longer texts are divided, and of other examples the end is cut off.

    Raises:
        CalibrationError: the fine-tune is no language model, or there are fewer than two distinct examples.
        CheckpointError: the fine-tune names no token that ends a text, or has no usable tokenizer.
        DataError: an example has no token to judge by, or its chat cannot be rendered; see `ken_core.learned_rows`.
    """
    if not judges_language(tuned):
        raise CalibrationError(
            f"{tuned.folder} is a {type(tuned.model).__name__}; texts to learn judge causal language models only"
        )
    choosing, judging = divide([key_of(one) for one in examples], None, CHOOSING_SHARE, seed)
    repeated = len(examples) - len(choosing) - len(judging)
    choosing, judging = choosing or judging[:1], judging if choosing else judging[1:]
    if not judging:
        raise CalibrationError("found one distinct example; expected two or more, one to choose by and one to judge by")
    reader = _Reader(tuned, longest)
    judged = reader.texts([examples[i] for i in judging])
    shown = reader.texts([examples[i] for i in random.Random(seed).sample(choosing, len(choosing))])  # noqa: S311
    chosen = _within(shown, _MOST_TOKENS)
    judges = Judges(
        judge=reader.judge(judged),
        distance=reader.divergence(chosen, tuned.model),
        choosing=len(chosen),
        texts=tuple(reader.row(rows[0]) for rows in shown),
        metric=metric,
        reading=reader.reading,
    )
    return LanguageJudges(judges, reader.reading, reader.at_limit, repeated)


def judge_tokens(tuned: Checkpoint, examples: Sequence[LanguageExample], longest: int = LONGEST) -> Judge:
    """A judge that says what a language model with the fine-tune's tokenizer says of every token of examples.

    Args, Raises: as `language_judges_for`.
    """
    reader = _Reader(tuned, longest)
    return reader.judge(reader.texts(examples))


class _Reader:
    """Makes rows of examples, and has models read them."""

    def __init__(self, tuned: Checkpoint, longest: int) -> None:
        self._encoder = Encoder(tuned, tuned.config, {})
        self._rows_of = RowMaker(self._encoder, end_ids(tuned), longest)
        self._cut = self._divided = 0

    @property
    def at_limit(self) -> bool:
        """Whether the model reads no more tokens at once."""
        return self._rows_of.at_limit

    @property
    def reading(self) -> Reading:
        """How long the examples were read of which there are rows by now."""
        return Reading(longest=self._rows_of.longest, cut=self._cut, divided=self._divided)

    def texts(self, examples: Sequence[LanguageExample]) -> list[list[LearnedRow]]:
        """The rows of each example."""
        return list(map(self._text, examples))

    def row(self, row: LearnedRow) -> Encoded:
        """A row as a model of any kind is given one."""
        return self._encoder.given(row.ids)

    def judge(self, texts: Sequence[Sequence[LearnedRow]]) -> Judge:
        """What a model says of every token of texts."""
        numbered = [(row, number) for number, rows in enumerate(texts) for row in rows]

        def judge(model: PreTrainedModel) -> TokenAnswers:
            best, losses, of_text = [], [], []
            number_of = {id(row): number for row, number in numbered}
            with torch.inference_mode():
                for rows in passes_of([row for row, _ in numbered]):
                    logits, tokens = learned_logits(model, rows, self._encoder.pad_id)
                    best.append(logits.argmax(dim=-1))
                    losses.append(cross_entropy(logits, tokens, reduction="none"))
                    of_text += [number for row in rows for number in repeat(number_of[id(row)], row.targets)]
            return TokenAnswers(torch.cat(best).numpy(), torch.cat(losses).double().numpy(), np.array(of_text))

        return judge

    def divergence(self, texts: Sequence[Sequence[LearnedRow]], tuned: PreTrainedModel) -> Distance:
        """The mean Kullback-Leibler divergence from what the fine-tune says of each token, in nats."""
        batches = list(passes_of([row for rows in texts for row in rows]))
        with torch.inference_mode():
            expected = [Said.of(learned_logits(tuned, rows, self._encoder.pad_id)[0]) for rows in batches]

        def distance(model: PreTrainedModel) -> float:
            total = 0.0
            with torch.inference_mode():
                for rows, said in zip(batches, expected, strict=True):
                    total += said.divergence(learned_logits(model, rows, self._encoder.pad_id)[0])
            return at_least_zero(total / sum(map(len, expected)))

        return distance

    def _text(self, example: LanguageExample) -> list[LearnedRow]:
        made = self._rows_of.of_one(example)
        if isinstance(example, Text) and sum(row.targets for row in made.rows) < 2:
            raise DataError(
                f"{example.where}: found a text with no token after its first one but its end, so nothing can be judged"
            )
        self._cut += made.cut
        self._divided += made.divided
        return list(made.rows)


def _within(texts: Sequence[Sequence[LearnedRow]], tokens: int) -> list[Sequence[LearnedRow]]:
    """As many texts as have at most so many tokens to judge by; always one, of a longer one the first rows."""
    found: list[Sequence[LearnedRow]] = []
    for rows in texts:
        kept = [row for row, before in zip(rows, _before(rows), strict=True) if before < tokens]
        tokens -= sum(row.targets for row in rows)
        if found and tokens < 0:
            break
        found.append(kept)
    return found


def _before(rows: Sequence[LearnedRow]) -> Iterator[int]:
    """How many tokens to judge by come before each row."""
    return accumulate((row.targets for row in rows[:-1]), initial=0)

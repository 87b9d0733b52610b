"""By which text, and how, `ken calibrate` judges a fine-tune's deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from serving.cli.cut_examples import lost_ends
from serving.terminal import counted

if TYPE_CHECKING:
    from ken_core import Checkpoint, Judges


class LanguageMetric(StrEnum):
    """What a language model is judged by."""

    PERPLEXITY = "perplexity"
    AGREEMENT = "agreement"


@dataclass(frozen=True)
class JudgedBy:
    """Judges of a fine-tune's deltas.

    Attributes:
        usual_tolerance: where none is given.
        warnings: of what was not read as it stands in the file.
    """

    judges: Judges
    usual_tolerance: float
    warnings: Sequence[str]


def judges_of(
    tuned: Checkpoint, data: Path, metric: LanguageMetric | None, max_length: int | None, seed: int
) -> JudgedBy:
    """Judges by a file of text, as the kind of fine-tune takes it.

    Raises:
        BadParameter: an option of language models was given for a classifier.
        DataError, CalibrationError: the file or the fine-tune does not suit.
    """
    from ken_core.language_judges import judges_language

    if judges_language(tuned):
        return _of_language(tuned, data, metric or LanguageMetric.PERPLEXITY, max_length, seed)
    for name, value in (("--metric", metric), ("--max-length", max_length)):
        if value is not None:
            raise typer.BadParameter(
                f"{tuned.folder} is no language model, which this option is for; leave it out", param_hint=name
            )
    return _of_answers(tuned, data, seed)


def _of_answers(tuned: Checkpoint, data: Path, seed: int) -> JudgedBy:
    from ken_core import judges_for
    from ken_core.examples import read_texts
    from ken_core.judges import check_classifier

    check_classifier(tuned)
    texts, labels = read_texts(data)
    distinct = len(set(texts if labels is None else zip(texts, labels, strict=True)))
    return JudgedBy(judges_for(tuned, texts, labels, seed), 0.005, _repeated(len(texts) - distinct, data))


def _of_language(tuned: Checkpoint, data: Path, metric: LanguageMetric, max_length: int | None, seed: int) -> JudgedBy:
    from ken_core.language_examples import is_labelled, read_language_examples
    from ken_core.language_judges import language_judges_for
    from ken_core.learned_rows import LONGEST

    examples = read_language_examples(data)
    found = language_judges_for(tuned, examples, metric.value, seed, max_length or LONGEST)
    warnings = _repeated(found.repeated, data)
    if is_labelled(data):
        warnings.append(
            f"the labels in {data} are not used: {tuned.folder} is a language model, which learns the texts"
        )
    if found.reading.cut:
        warnings.append(lost_ends(found.reading.cut, found.reading.longest, found.at_limit))
    return JudgedBy(found.judges, 0.01 if metric is LanguageMetric.PERPLEXITY else 0.05, warnings)


def _repeated(count: int, data: Path) -> list[str]:
    return [f"found {counted(count, 'repeated line')} in {data}; each example was counted once"] if count else []

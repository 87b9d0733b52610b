"""The command ``ken eval``: how good a text classifier's answers are on labelled text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ken_core.errors import DataError, KenError
from serving.cli.answering import Answerer, Given, answerer, in_order
from serving.cli.options import DataDir, JsonFlag, Namespace, RedisUrl, Url
from serving.cli.panels import ASKING
from serving.cli.targets import LocalBase, Target, TargetArgument, target_of
from serving.local.errors import GeneratesTextError
from serving.terminal import out, print_json, progress, say, table

if TYPE_CHECKING:
    from ken_core.classification_report import ClassificationReport, Interval
    from ken_core.examples import Example
    from ken_core.labels import Label

_KIND = "text-classification"
_BATCH = 32
_IN_FLIGHT = 4
_ONE = 1e-3
"""By how much the probabilities of all labels may differ from 1 together."""
_FEW = 100
"""Of fewer examples than this, resamples tell little."""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("eval", rich_help_panel=ASKING)(evaluate)


def evaluate(
    context: typer.Context,
    target: TargetArgument,
    data: Annotated[
        Path,
        typer.Option(help="JSON lines, CSV or TSV with the fields `text` and `label`, and `text_pair` for pairs"),
    ],
    base: LocalBase = None,
    confidence: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="probability that an interval holds the figure of all such text")
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="seed of the intervals of F1 and calibration error")] = 0,
    url: Url = None,
    redis_url: RedisUrl = None,
    data_dir: DataDir = None,
    namespace: Namespace = "default",
    as_json: JsonFlag = False,
) -> None:
    """Measure a text classifier on labelled text: accuracy, F1 and calibration error, each with an interval.

    The target is a delta file, a fine-tune's folder, or a task of a store or server. The figures are the same by
    whatever way.

    Example: ken eval trec@canary --data dev.jsonl --url http://localhost:8000
    """
    import asyncio  # imported late, since `ken --help` would wait for it

    from ken_core.classification_report import report
    from ken_core.examples import read_examples
    from ken_core.records import read_records

    meant = target_of(target, context, url)

    async def run() -> tuple[str, _Answers]:
        async with answerer(meant, base, url, redis_url, data_dir, namespace, kind=_KIND) as asked:
            examples = read_examples(data)
            lines = [row.line for row in read_records(data).rows]
            return asked.digest, await _answers(asked, examples, lines)

    try:
        digest, found = asyncio.run(run())
    except GeneratesTextError:
        raise KenError(
            f"{target} is a language model, and `ken eval` measures text classifiers; `ken calibrate` measures the "
            "perplexity or agreement of a language model's deltas while it makes one"
        ) from None
    labels = sorted(found.labels)
    numbers = {label: i for i, label in enumerate(labels)}
    made = report(
        [numbers[name] for name in found.truth],
        [numbers[name] for name in found.best],
        found.probabilities,
        labels,
        confidence=confidence,
        seed=seed,
    )
    _show(meant, digest, data, made, as_json)


@dataclass(frozen=True)
class _Answers:
    """Names of labels: all of them, the true ones, and those that were answered, with their probabilities."""

    labels: Sequence[str]
    truth: Sequence[str]
    best: Sequence[str]
    probabilities: Sequence[float]


async def _answers(asked: Answerer, examples: Sequence[Example], lines: Sequence[int]) -> _Answers:
    """Ask for every example, which are in these lines of a file.

    Raises:
        DataError: an example cannot be answered, has a label that the task does not know, or the task gives a text no
            one label.
    """
    inputs = [_input(example) for example in examples]
    outputs: list[list[dict[str, Any]]] = []
    labels: list[str] = []
    truth: list[str] = []
    with progress("evaluating") as update:
        async for some in in_order(asked, inputs, _BATCH, _IN_FLIGHT):
            for one in some:
                outputs.append(_scores(one, lines[len(outputs)]))
            if not labels:  # the first answer names them all, so that a wrong one is told at once
                labels = [row["label"] for row in outputs[0]]
                truth = _names([example.label for example in examples], lines, labels, asked.labels)
            update(len(outputs), len(inputs), "")
    return _Answers(labels, truth, [rows[0]["label"] for rows in outputs], [rows[0]["score"] for rows in outputs])


def _input(example: Example) -> Any:
    if example.text_pair is None:
        return example.text
    return {"text": example.text, "text_pair": example.text_pair}


def _scores(given: Given, line: int) -> list[dict[str, Any]]:
    """The probabilities of all labels, the highest first."""
    if given.error is not None:
        raise DataError(f"line {line} cannot be answered: {given.error}")
    rows: list[dict[str, Any]] = given.output
    total = sum(row["score"] for row in rows)
    if len(rows) < 2 or abs(total - 1) > _ONE:
        raise DataError(
            f"the scores of line {line} are no probabilities of two or more labels that exclude each other (their sum "
            f"is {total:.4g}), so this task gives a text no one label: it is regression, or several labels may hold. "
            "ken eval knows classifiers with one label per text"
        )
    return rows


def _names(
    labels: Sequence[Label], lines: Sequence[int], known: Sequence[str], numbered: Sequence[str] | None
) -> list[str]:
    """The names of the examples' labels. Integers are names where the task has labels of all these names; else they
    are the numbers of its labels, which only a task in this process tells (`ken_core.labels.numbers_of`)."""
    if all(str(label) in known for label in labels):
        return list(map(str, labels))
    names = []
    for line, label in zip(lines, labels, strict=True):
        if isinstance(label, int) and numbered is not None and 0 <= label < len(numbered):
            names.append(numbered[label])
        elif isinstance(label, str) and label in known:
            names.append(label)
        else:
            told = isinstance(label, int) and numbered is None
            hint = "; a server does not tell the numbers of labels, so name them" if told else ""
            raise DataError(f"line {line} has the label {label!r}; the task knows {', '.join(sorted(known))}{hint}")
    return names


def _show(target: Target, digest: str, data: Path, found: ClassificationReport, as_json: bool) -> None:
    if as_json:
        print_json({"target": target.name, "digest": digest, "data": str(data), **asdict(found)})
        return
    figures = (
        ("accuracy", found.accuracy),
        ("macro F1", found.macro_f1),
        ("calibration error", found.calibration_error),
    )
    bounds = f"{100 * found.confidence:g} % interval"
    title = f"{target.name} ({digest[:12]}…) on {found.examples:,} examples"
    out.print(table(title, ["figure", "value", bounds], [_figure(name, figure) for name, figure in figures]))
    if found.examples < _FEW:
        say(f"of fewer than {_FEW} examples, the intervals of F1 and calibration error are rough")
    columns = ["label", "precision", "recall", "F1", "examples", "answers"]
    rows = [
        [
            one.label,
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            f"{one.f1:.3f}",
            f"{one.examples:,}",
            f"{one.answers:,}",
        ]
        for one in found.labels
    ]
    out.print(table("", columns, rows))


def _figure(name: str, figure: Interval) -> list[str]:
    return [name, f"{figure.value:.4f}", f"{figure.low:.4f} to {figure.high:.4f}"]

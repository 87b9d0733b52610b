"""Calibration: the smallest delta that can be promised to lose no more than a tolerance, or the promise for a size.

One part of the text chooses between the deltas of a size, the other judges the chosen one (`ken_core.judges`). What is
promised holds for all text like the judging examples, with a given confidence (`ken_core.promise`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ken_core import deltafile
from ken_core.candidates import Candidates, Judged, Way, ways
from ken_core.checkpoint import Checkpoint, open_as
from ken_core.codings import Codec
from ken_core.container import DeltaFile
from ken_core.delta import Delta
from ken_core.errors import CalibrationError, CheckpointError, TooSmallError, TrainingError
from ken_core.judges import Judges, lines_for
from ken_core.manifest import Calibration, Metric, Trial
from ken_core.progress import Progress, Stage, silent
from ken_core.promise import in_sequence
from ken_core.selection import Method
from ken_core.tensor_filter import EVERYTHING, TensorFilter
from ken_core.text_bounds import MOST_CONFIDENCE
from ken_core.verdicts import Judgement, TokenAnswers, Verdict, least_examples, unchanged, verdict
from ken_core.writing import writing

METHODS: tuple[Method, ...] = ("svd", "magnitude")
CODECS_TRIED: tuple[Codec, ...] = ("int4",)
PARTS = (6, 11, 22, 45, 90, 182)
"""After the delta of all that changed, files of these parts of the base's bytes are tried, each about half the last."""
_HARDLY_LARGER = 1.25
_RECORD_BYTES = 800
_TRIAL_BYTES = 500
"""Of a file, at most this is the record of a calibration, and of each delta that it tried."""


@dataclass(frozen=True)
class Calibrated:
    """The file of the chosen delta, and the record of the search."""

    file: DeltaFile
    record: Calibration
    failed: Trial | None = None
    """The next smaller delta, of which nothing could be promised."""
    warnings: tuple[str, ...] = ()
    """Warnings of the chosen delta (`Delta.warnings`), and that it keeps nothing or is no better than its base."""


def calibrate(
    base: Checkpoint,
    tuned: Checkpoint,
    judges: Judges,
    out: Path,
    *,
    tolerance: float = 0.005,
    confidence: float = 0.9,
    methods: Sequence[Method] = METHODS,
    codecs: Sequence[Codec] = CODECS_TRIED,
    tensors: TensorFilter = EVERYTHING,
    cast: bool = False,
    ignore_config: Collection[str] = (),
    progress: Progress = silent,
) -> Calibrated:
    """Write the smallest delta of which it can be promised that it loses at most `tolerance`.

    All that changed is judged first, stored without loss; then one delta of about half the size after another, each
    chosen from all methods and codecs, until the promise cannot be made. `promise.in_sequence` says why the probability
    that the written delta loses more than `tolerance` is at most 1 - `confidence`; of perplexity, approximately so.

    Args:
        tolerance: how far the share of right answers may fall, above 0; for example 0.005 for half a point.
        confidence: the probability that the promise is kept, at least 0.5 and below 1.
        methods: methods to try, each with the widest scope it allows.
        codecs: codecs to try with each method; `svd` leaves out those that store no factors.
        ignore_config: as for `extract`.
        progress: told which delta is being tried.

    Raises:
        CalibrationError: there is no method or codec to try, or too few examples to promise anything; the fine-tune's
            files lack weights; a judge returns something else than a bool for each example; or nothing can be promised
            even of all that changed.
        OutputError: the delta cannot be written.
    """
    among = _checked(tuned, confidence, methods, codecs)
    _check_tolerance(tolerance)
    expected = judges.judge(tuned.model)
    _check_enough(judges, expected, tolerance, confidence)
    beside = _score_of_base(base, tuned, judges, expected, progress)
    with _folder_beside(out) as folder:
        candidates = Candidates(
            base, tuned, judges, expected, folder, confidence=confidence, tensors=tensors, cast=cast,
            ignore_config=ignore_config, looks=1 + len(PARTS) * len(among), progress=progress,
        )  # fmt: skip
        looks = _looks(candidates, base, among)
        passed, failed = in_sequence(looks, lambda look: look.verdict.holds(tolerance, confidence))
    needed = None if failed is None else failed.verdict.needed(tolerance, confidence)
    if failed is not None and not passed:
        raise _nothing_holds(judges, failed.verdict, tolerance, confidence)
    chosen = passed[-1]
    record = _record(judges, expected, chosen, candidates, tolerance, beside, promised=tolerance, needed=needed)
    file = deltafile.write(chosen.delta, base, out, chosen.trial.codec, calibration=record, progress=progress)
    return Calibrated(file, record, None if failed is None else failed.trial, _warnings(chosen.delta, file, record))


def best_within(
    base: Checkpoint,
    tuned: Checkpoint,
    judges: Judges,
    size: int,
    out: Path,
    *,
    confidence: float = 0.9,
    methods: Sequence[Method] = METHODS,
    codecs: Sequence[Codec] = CODECS_TRIED,
    tensors: TensorFilter = EVERYTHING,
    cast: bool = False,
    ignore_config: Collection[str] = (),
    progress: Progress = silent,
) -> Calibrated:
    """Write the best delta of at most `size` bytes, record included, with a promise of how much it loses at most.

    The other way round of `calibrate`: the size is given, and the record's `promised` is the upper bound of one look.

    Args, Raises: as `calibrate`; and
        TooSmallError: the parts that every delta needs are larger than `size`.
    """
    among = _checked(tuned, confidence, methods, codecs)
    expected = judges.judge(tuned.model)
    _check_enough(judges, expected, None, confidence)
    beside = _score_of_base(base, tuned, judges, expected, progress)
    taken = _RECORD_BYTES + _TRIAL_BYTES * len(among)
    with _folder_beside(out) as folder:
        candidates = Candidates(
            base, tuned, judges, expected, folder, confidence=confidence, tensors=tensors, cast=cast,
            ignore_config=ignore_config, looks=len(among), progress=progress,
        )  # fmt: skip
        try:
            nearest = candidates.nearest(size - taken, among)
        except TooSmallError as error:
            raise error.beside(taken) from None
        chosen = candidates.judge(nearest)
    bound = chosen.verdict.upper_bound(confidence)
    record = _record(judges, expected, chosen, candidates, None, beside, promised=bound, needed=None)
    file = deltafile.write(chosen.delta, base, out, chosen.trial.codec, calibration=record, progress=progress)
    return Calibrated(file, record, None, _warnings(chosen.delta, file, record))


def _looks(candidates: Candidates, base: Checkpoint, among: Sequence[Way]) -> Iterator[Judged]:
    """Deltas from the largest to the smallest, each chosen and judged when it is its turn."""
    look = candidates.judge(candidates.lossless())
    yield look
    whole = sum(t.nbytes for t in base.backbone_tensors.values())
    for size in (whole // part for part in PARTS):
        if look.trial.bytes <= _HARDLY_LARGER * size:
            continue  # nothing more was left to keep; another look would hardly make the file smaller
        try:
            look = candidates.judge(candidates.nearest(size, among))
        except TooSmallError:
            return
        yield look


def _record(
    judges: Judges,
    expected: Judgement,
    chosen: Judged,
    candidates: Candidates,
    tolerance: float | None,
    base_score: float | None,
    *,
    promised: float,
    needed: int | None,
) -> Calibration:
    found = chosen.verdict
    return Calibration(
        metric=judges.metric,
        examples=found.examples,
        tokens=expected.text.size if isinstance(expected, TokenAnswers) else None,
        reading=judges.reading,
        choosing=judges.choosing,
        tolerance=tolerance,
        confidence=candidates.confidence,
        promised=promised,
        tuned_score=found.tuned_score,
        score=found.score,
        base_score=base_score,
        needed=needed,
        chosen=candidates.tried.index(chosen.trial),
        tried=tuple(candidates.tried),
    )


def _score_of_base(
    base: Checkpoint, tuned: Checkpoint, judges: Judges, expected: Judgement, progress: Progress
) -> float | None:
    """What the base itself scores; None where answers are judged, or it does not take the texts."""
    words = [c.config.get_text_config().vocab_size for c in (base, tuned)] if isinstance(expected, TokenAnswers) else []
    if not words or words[0] < words[1]:
        return None
    progress(Stage("trying", "the base itself", 0, 1))
    try:
        whole = open_as(base, type(tuned.model), base.config)
        return None if whole.absent else verdict(judges.metric, expected, judges.judge(whole.model)).score
    except (CheckpointError, TrainingError):
        return None


def _warnings(chosen: Delta, file: DeltaFile, record: Calibration) -> tuple[str, ...]:
    """The delta's own, and what makes little of a promise."""
    kept, beside = file.manifest, record.base_score
    if not (kept.stored or kept.lowrank or kept.dense):
        return (
            *chosen.warnings,
            "the delta keeps nothing of the fine-tune but its head, so what is promised is promised of the base; give "
            "a smaller tolerance or a larger size",
        )
    if beside is None or (record.score < beside if record.metric == "perplexity" else record.score > beside):
        return chosen.warnings
    return (
        *chosen.warnings,
        f"the delta's {record.metric} of {record.score:.4f} is no better than {beside:.4f}, the base's own, so what is "
        "promised says nothing of what the fine-tune learned; give a smaller tolerance or a larger size",
    )


def _checked(tuned: Checkpoint, confidence: float, methods: Sequence[Method], codecs: Sequence[Codec]) -> list[Way]:
    if not 0.5 <= confidence < 1.0:
        raise CalibrationError(f"found a confidence of {confidence:g}; expected at least 0.5 and less than 1")
    if tuned.lacking:
        raise CalibrationError(
            f"{tuned.folder} lacks {tuned.lacking[0]!r}, which transformers would make up at random, so the model "
            "that was fine-tuned cannot be judged: save all its weights, or use `ken extract`"
        )
    return ways(methods, codecs)


def _check_tolerance(tolerance: float) -> None:
    if not 0.0 < tolerance < 1.0:
        raise CalibrationError(
            f"found a tolerance of {tolerance:g}; expected more than 0 and less than 1. That nothing at all is lost "
            "cannot be promised from examples; `ken extract --keep 1` keeps all that changed"
        )


def _check_enough(judges: Judges, expected: Judgement, tolerance: float | None, confidence: float) -> None:
    """Check that there are enough examples to promise a tolerance if nothing is lost; None: to promise anything."""
    if judges.metric == "perplexity" and confidence > MOST_CONFIDENCE:
        raise CalibrationError(
            f"found a confidence of {confidence:g}; what is promised of perplexity is an approximation, which holds up "
            f"to {MOST_CONFIDENCE:g}. Give that at most, or judge by agreement"
        )
    same = unchanged(judges.metric, expected)
    least = least_examples(judges.metric, expected, tolerance, confidence)
    if same.independent >= least:
        return
    uneven = same.independent < same.examples
    spread = f"; these count as {same.independent:,}, since a few have most of the tokens" if uneven else ""
    promised = "anything" if tolerance is None else f"that {_most_lost(judges.metric, tolerance)}"
    others = "" if judges.metric == "perplexity" else f", or a tolerance of at least {same.upper_bound(confidence):.2g}"
    raise CalibrationError(
        f"found {same.examples:,} examples to judge by; to promise with {_percent(confidence)} confidence "
        f"{promised} takes {least:,}, even if not one answer changes{spread}. "
        f"Give at least {lines_for(least):,} distinct lines of text (a fifth of them chooses){others}"
    )


def _most_lost(metric: Metric, tolerance: float) -> str:
    if metric == "perplexity":
        return f"the perplexity rises by at most {_percent(tolerance)}"
    return f"at most {100 * tolerance:g} points are lost"


def _nothing_holds(judges: Judges, found: Verdict, tolerance: float, confidence: float) -> CalibrationError:
    """The error where even the delta of all that changed loses too much."""
    return CalibrationError(
        f"no delta can be promised with {_percent(confidence)} confidence such that "
        f"{_most_lost(judges.metric, tolerance)}: stored without loss, all that was selected {found.told}. Select from "
        "all tensors, leave out --cast, see that the judge answers the same twice, or give more examples or a larger "
        "tolerance"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    with writing(out):
        folder = TemporaryDirectory(prefix=".ken-calibrate-", dir=out.resolve().parent)
    with folder as name:
        yield Path(name)

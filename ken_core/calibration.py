"""Calibration: a search for the smallest delta whose score stays within a tolerance of the fine-tuned model's.

Methods and codecs are tried one after another. Bisection on a logarithmic scale finds the fraction to keep, on the
assumption that keeping more is not worse. The search gives up a method or codec that misses the tolerance wherever its
delta is smaller than the best one so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from ken_core import deltafile
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.codings import Codec
from ken_core.container import DeltaFile
from ken_core.delta import Delta
from ken_core.errors import KenError
from ken_core.evaluate import classify, label_ids
from ken_core.examples import Example
from ken_core.extraction import extract
from ken_core.heads import graft
from ken_core.labels import Label
from ken_core.manifest import Calibration, Metric, Trial
from ken_core.progress import Progress, Stage, silent
from ken_core.resident import ResidentModel
from ken_core.selection import ALLOWED_SCOPES, Budget, Method, Selection
from ken_core.tensor_filter import EVERYTHING, TensorFilter
from ken_core.tokenization import Encoder, Input
from ken_core.writing import writing

Right = npt.NDArray[np.bool_]
"""Whether each example was answered correctly, shape (examples,)."""
Judge = Callable[[PreTrainedModel], Right]
"""Answers the examples with a model, always in the same order, and says which answers are right."""

METHODS: tuple[Method, ...] = ("magnitude", "ken-shift", "ken")
CODECS_TRIED: tuple[Codec, ...] = ("zstd", "int8", "int4", "sign")
_PRECISION = 1.1
"""Bisection ends when a fraction that holds the tolerance is within this factor of one that does not."""
_SMALLEST = 1e-3
_DRAWS = 100_000


class CalibrationError(KenError):
    """There is nothing to choose from, or the fine-tune is of a kind that cannot be judged here."""


@dataclass(frozen=True)
class Calibrated:
    """The file of the chosen delta, and the record of the search."""

    file: DeltaFile
    record: Calibration
    warnings: tuple[str, ...] = ()
    """Warnings of the chosen delta (`Delta.warnings`)."""


def calibrate(
    base: Checkpoint,
    tuned: Checkpoint,
    judge: Judge,
    out: Path,
    *,
    metric: Metric = "accuracy",
    tolerance: float = 0.005,
    methods: Sequence[Method] = METHODS,
    codecs: Sequence[Codec] = CODECS_TRIED,
    tensors: TensorFilter = EVERYTHING,
    cast: bool = False,
    ignore_config: Collection[str] = (),
    progress: Progress = silent,
) -> Calibrated:
    """Write the smallest delta whose score is at most `tolerance` below the fine-tune's.

    Args:
        judge: answers examples with a model and says which answers are right.
        metric: what the record calls the share of right answers.
        tolerance: how far the score may fall, for example 0.005 for half a point.
        methods: methods to try, each with the widest scope it allows; `ken-grid`, which takes no fraction, is left out.
        codecs: codecs to try, lossless ones first.
        ignore_config: as for `extract`.
        progress: told which delta is being tried.

    Raises:
        CalibrationError: there is no method or codec to try, the fine-tune's files lack weights, or no delta that was
            tried stays within the tolerance.
        OutputError: the delta cannot be written.
    """
    usable = [m for m in methods if m != "ken-grid"]
    if not usable or not codecs:
        raise CalibrationError("calibration needs at least one method (other than ken-grid) and one codec to try")
    if tuned.lacking:
        raise CalibrationError(
            f"{tuned.folder} lacks {tuned.lacking[0]!r}, which transformers would make up at random, so the model "
            "that was fine-tuned cannot be judged: save all its weights, or use `ken extract`"
        )
    right = judge(tuned.model)
    making = partial(extract, base, tuned, cast=cast, ignore_config=ignore_config)
    search = _Search(base, making, judge, float(right.mean()) - tolerance, tensors, progress)
    with _folder_beside(out) as search.folder:
        for codec in codecs:
            for method in usable if codec == codecs[0] else [search.best_method(usable[0])]:
                search.smallest(method, codec)
    best = search.best
    if best is None:
        raise CalibrationError(
            f"no delta tried comes within {tolerance} of the fine-tune's {float(right.mean()):.4f}; "
            "try a lossless codec (zstd), which at 100 % kept is the fine-tune itself"
        )
    record = Calibration(
        metric=metric,
        examples=right.size,
        tolerance=tolerance,
        tuned_score=float(right.mean()),
        score=best.trial.score,
        confidence=confidence(right, best.right, tolerance),
        tried=tuple(search.tried),
    )
    delta = making(best.selection)
    file = deltafile.write(delta, base, out, best.trial.codec, calibration=record)
    return Calibrated(file, record, delta.warnings)


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    with writing(out):
        folder = TemporaryDirectory(prefix=".ken-calibrate-", dir=out.resolve().parent)
    with folder as name:
        yield Path(name)


def confidence(tuned: Right, pruned: Right, tolerance: float) -> float:
    """Posterior probability that the score on all text like the examples falls by at most `tolerance`.

    Each example falls into one of three groups: both models are right or both wrong, only the fine-tune is right, only
    the pruned model is right. With Jeffreys' prior (1/2 each) the three shares have a Dirichlet posterior, which is
    sampled with a fixed seed. The result does not account for the delta having been chosen on the same examples: judge
    it on other examples before relying on it.
    """
    lost, won = int((tuned & ~pruned).sum()), int((pruned & ~tuned).sum())
    shares = np.random.default_rng(0).dirichlet([lost + 0.5, won + 0.5, tuned.size - lost - won + 0.5], _DRAWS)
    return float((shares[:, 0] - shares[:, 1] <= tolerance).mean())


def judge_labels(encoder: Encoder, examples: Sequence[Example]) -> Judge:
    """A judge that calls a classifier's answer right if it is the example's label."""
    texts = [e.input for e in examples]
    return lambda model: classify(model, encoder, texts) == label_ids(model, examples)


def judge_agreement(encoder: Encoder, texts: Sequence[Input], tuned: PreTrainedModel) -> Judge:
    """A judge that calls a classifier's answer right if the fine-tune gives the same answer."""
    expected = classify(tuned, encoder, texts)
    return lambda model: classify(model, encoder, texts) == expected


def judge_for(tuned: Checkpoint, texts: Sequence[Input], labels: Sequence[Label] | None) -> tuple[Metric, Judge]:
    """The metric and judge for texts: accuracy where there are labels, else agreement with the fine-tune.

    Raises:
        CalibrationError: the fine-tune is no text classifier: give `calibrate` a judge of your own.
        DataError: there is a label that the fine-tune does not know.
    """
    if not type(tuned.model).__name__.endswith("ForSequenceClassification"):
        raise CalibrationError(
            f"{tuned.folder} is a {type(tuned.model).__name__}; labelled text judges sequence classifiers only. "
            "For other kinds call ken_core.calibrate with a judge of your own"
        )
    encoder = Encoder(tuned, tuned.config, {})
    if labels is None:
        return "agreement", judge_agreement(encoder, texts, tuned.model)
    pairs = (text if isinstance(text, tuple) else (text, None) for text in texts)
    examples = [Example(text, label, pair) for (text, pair), label in zip(pairs, labels, strict=True)]
    label_ids(tuned.model, examples)
    return "accuracy", judge_labels(encoder, examples)


@dataclass(frozen=True)
class _Measured:
    selection: Selection
    trial: Trial
    right: Right
    holds: bool


class _Search:
    """The deltas measured so far, and the smallest of them that holds the tolerance."""

    def __init__(
        self,
        base: Checkpoint,
        making: Callable[..., Delta],
        judge: Judge,
        needed: float,
        tensors: TensorFilter,
        progress: Progress,
    ) -> None:
        self._base, self._making, self._judge, self._needed = base, making, judge, needed
        self._tensors, self._progress = tensors, progress
        self.resident = ResidentModel(open_base(str(base.folder)))
        self.folder = Path()
        self.tried: list[Trial] = []
        self.best: _Measured | None = None

    def best_method(self, fallback: Method) -> Method:
        return self.best.selection.method if self.best else fallback

    def smallest(self, method: Method, codec: Codec) -> None:
        """Bisect the fraction kept, between one that holds the tolerance and a smaller one that does not.

        Nothing is done where no delta smaller than the best one so far holds the tolerance.
        """
        bracket = self._bracket(method, codec)
        if bracket is None:
            return
        holds, fails = bracket
        while holds / fails > _PRECISION:
            middle = float(np.sqrt(holds * fails))
            if self._measure(method, codec, middle).holds:
                holds = middle
            else:
                fails = middle

    def _bracket(self, method: Method, codec: Codec) -> tuple[float, float] | None:
        """A fraction that holds the tolerance with a delta no larger than the best, and a smaller one that does not."""
        if self.best is None:
            return (1.0, _SMALLEST) if self._measure(method, codec, 1.0).holds else None
        fraction = self.best.trial.fraction
        for _ in range(8):
            measured = self._measure(method, codec, fraction)
            if measured.trial.bytes < self.best.trial.bytes or measured is self.best:
                return (fraction, _SMALLEST) if measured.holds else self._larger(method, codec, fraction)
            fraction *= 0.98 * self.best.trial.bytes / measured.trial.bytes
        return None

    def _larger(self, method: Method, codec: Codec, fails: float) -> tuple[float, float] | None:
        """As `_bracket`, for a codec that must keep more than the best delta but may still give a smaller file."""
        while fails < 1.0:
            fraction = min(1.0, fails * 1.25)
            measured = self._measure(method, codec, fraction)
            if measured is self.best:  # this delta holds the tolerance and is smaller than the best before it
                return fraction, fails
            if measured.holds or (self.best is not None and measured.trial.bytes >= self.best.trial.bytes):
                return None
            fails = fraction
        return None

    def _measure(self, method: Method, codec: Codec, fraction: float) -> _Measured:
        scope = ALLOWED_SCOPES[method][0]
        selection = Selection(method, Budget(scope, fraction), tensors=self._tensors)
        self._progress(Stage("trying", f"{method}, {fraction:.1%}, {codec}", len(self.tried), len(self.tried) + 1))
        delta = self._making(selection)
        file = deltafile.write(delta, self._base, self.folder / "trial.ken", codec)
        right = self._answer(file)
        score = float(right.mean())
        trial = Trial(method=method, scope=scope, fraction=fraction, codec=codec, bytes=file.size, score=score)
        self.tried.append(trial)
        measured = _Measured(selection, trial, right, score >= self._needed - 1e-12)
        if measured.holds and (self.best is None or file.size < self.best.trial.bytes):
            self.best = measured
        return measured

    def _answer(self, file: DeltaFile) -> Right:
        """Judge the delta as a reader of the file would serve it."""
        delta = deltafile.read(file, self._base, self._base.identity.digest)
        attached = self.resident.attach(delta)
        self.resident.activate(attached)
        try:
            model = graft(self.resident.backbone, delta.architecture, delta.config, attached.head)
            return self._judge(model)
        finally:
            self.resident.revert()

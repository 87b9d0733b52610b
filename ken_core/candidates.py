"""The deltas that calibration chooses from: of each size, the one whose answers are nearest to the fine-tune's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel

from ken_core import deltafile
from ken_core.checkpoint import Checkpoint, open_base
from ken_core.codings import FACTOR_CODECS, Codec
from ken_core.container import DeltaFile
from ken_core.delta import Delta
from ken_core.errors import CalibrationError, TooSmallError
from ken_core.extraction import Extraction
from ken_core.file_size import write_within
from ken_core.heads import graft
from ken_core.judges import Judges
from ken_core.manifest import Trial
from ken_core.progress import Progress, Stage
from ken_core.resident import ResidentModel
from ken_core.scales import fit_scales
from ken_core.selection import DECOMPOSING, Budget, Method, Selection
from ken_core.tensor_filter import TensorFilter
from ken_core.verdicts import Judgement, Verdict, verdict

Found = TypeVar("Found")


@dataclass(frozen=True)
class Way:
    """How a delta of some size is made."""

    method: Method
    codec: Codec


def ways(methods: Sequence[Method], codecs: Sequence[Codec]) -> list[Way]:
    """Every method with every codec that can store it.

    Raises:
        CalibrationError: there is none, or a method takes no budget of any size.
    """
    if "ken-grid" in methods:
        raise CalibrationError("found the method ken-grid, which keeps no given size; choose among the other methods")
    found = [Way(m, c) for m in methods for c in codecs if m != DECOMPOSING or c in FACTOR_CODECS]
    if not found:
        raise CalibrationError(
            f"found the methods {', '.join(methods) or 'none'} and the codecs {', '.join(codecs) or 'none'}; expected "
            f"at least one method and a codec that can store it ({DECOMPOSING}: {', '.join(FACTOR_CODECS)})"
        )
    return found


@dataclass(frozen=True)
class Candidate:
    """A delta and its file, which is kept until the next candidates are made."""

    delta: Delta
    file: DeltaFile
    trial: Trial


@dataclass(frozen=True)
class Judged:
    """A delta that has answered the judging examples."""

    delta: Delta
    trial: Trial
    verdict: Verdict


def _distance_and_bytes(candidate: Candidate) -> tuple[float, int]:
    distance = candidate.trial.distance
    return (float("inf") if distance is None else distance), candidate.trial.bytes


class Candidates:
    """Makes deltas of one fine-tune, answers with them as a reader of their files would, and keeps a record.

    Args:
        expected: what `judges.judge` says of the fine-tune.
        folder: for files that are only tried.
        confidence: of the bounds in the record.
        looks: how many deltas may be tried, for the progress.
    """

    def __init__(
        self,
        base: Checkpoint,
        tuned: Checkpoint,
        judges: Judges,
        expected: Judgement,
        folder: Path,
        *,
        confidence: float,
        tensors: TensorFilter,
        cast: bool,
        ignore_config: Collection[str],
        looks: int,
        progress: Progress,
    ) -> None:
        self._base, self._tuned, self._judges, self._expected = base, tuned, judges, expected
        self._folder, self.confidence, self._tensors = folder, confidence, tensors
        self._looks, self._progress = looks, progress
        self._resident = ResidentModel(open_base(str(base.folder)))
        self._extraction = Extraction(base, tuned, cast=cast, ignore_config=ignore_config, progress=progress)
        self.tried: list[Trial] = []

    def lossless(self) -> Candidate:
        """All that fine-tuning changed, stored without loss."""
        self._tell("all that changed")
        delta = self._extraction.delta(Selection("magnitude", Budget(fraction=1.0), tensors=self._tensors))
        return self._candidate(delta, deltafile.write(delta, self._base, self._folder / "all.ken"))

    def nearest(self, size: int, among: Sequence[Way]) -> Candidate:
        """Of all ways to make a file of at most `size` bytes, the one with the smallest distance.

        Raises:
            TooSmallError: there is no such file, whichever way it is made.
        """
        made: list[Candidate] = []
        too_small: list[TooSmallError] = []
        for way in among:
            try:
                made.append(self._of_size(size, way))
            except TooSmallError as error:
                too_small.append(error)
        if not made:
            raise min(too_small, key=lambda error: error.least)
        return min(made, key=_distance_and_bytes)

    def judge(self, candidate: Candidate) -> Judged:
        """Have a candidate answer the judging examples; its trial in `tried` then has the outcome."""
        found = self._answering(candidate.file, self._judges.judge)
        compared = verdict(self._judges.metric, self._expected, found)
        bound = compared.upper_bound(self.confidence)
        outcome = {"score": compared.score, **compared.counts, "bound": bound}
        trial = candidate.trial.model_copy(update=outcome)
        self.tried[self.tried.index(candidate.trial)] = trial
        return Judged(candidate.delta, trial, compared)

    def _of_size(self, size: int, way: Way) -> Candidate:
        self._tell(f"{way.method}, {way.codec}, {size / 1e6:.2f} MB")
        texts, fit = self._judges.texts, None
        if texts and way.method != DECOMPOSING:
            fit = partial(fit_scales, self._base, self._tuned, texts=texts, progress=self._progress)
        path = self._folder / f"{way.method}-{way.codec}.ken"
        delta, file = write_within(
            self._extraction,
            self._base,
            size,
            path,
            way.codec,
            method=way.method,
            tensors=self._tensors,
            refine=fit,
            progress=self._progress,
        )
        return self._candidate(delta, file)

    def _candidate(self, delta: Delta, file: DeltaFile) -> Candidate:
        distance = self._answering(file, self._judges.distance)
        trial = Trial(
            method=delta.selection.method,
            scope=delta.selection.budget.scope,
            fraction=delta.selection.budget.fraction,
            codec=file.manifest.codec,
            fitted=delta.fitted is not None,
            bytes=file.size,
            distance=distance if math.isfinite(distance) else None,
        )
        self.tried.append(trial)
        return Candidate(delta, file, trial)

    def _answering(self, file: DeltaFile, ask: Callable[[PreTrainedModel], Found]) -> Found:
        """What `ask` finds of the delta, as a reader of the file would serve it."""
        delta = deltafile.read(file, self._base, self._base.identity.digest)
        attached = self._resident.attach(delta)
        self._resident.activate(attached)
        try:
            return ask(graft(self._resident.backbone, delta.architecture, delta.config, attached.head))
        finally:
            self._resident.revert()

    def _tell(self, what: str) -> None:
        done = len(self.tried)
        self._progress(Stage("trying", what, done, max(self._looks, done + 1)))

"""Distillation: a delta's own numbers trained so that the pruned model answers as the fine-tune does.

Selection keeps what moved most, which is not what answers depend on most. A few optimiser steps on texts without labels
move the kept numbers to where they stand in for the rest (Hinton et al. 2015, arXiv 1503.02531). The base, the head,
the positions and the ranks stay as they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from ken_core.checkpoint import Checkpoint
from ken_core.codings import Codec
from ken_core.delta import Delta
from ken_core.divergence import Batch, check_comparable, divergence
from ken_core.errors import DataError, TrainingError
from ken_core.manifest import Distilled
from ken_core.progress import Progress, Stage, silent
from ken_core.student import Student
from ken_core.teacher import Teacher
from ken_core.tokenization import Encoder, Readable, collate

LEARNING_RATE = 3e-3
"""In units of the numbers' own size."""
_BATCH = 32
_WARM_UP = 0.1
"""Share of all steps."""
_LONGEST_STEP = 1.0
"""Norm that gradients are cut down to."""
_FEWEST_TO_HOLD_OUT = 50
"""Of fewer texts, all are trained on."""
_MOST_HELD_OUT = 128


def distil(
    base: Checkpoint,
    tuned: Checkpoint,
    delta: Delta,
    texts: Sequence[Readable],
    steps: int,
    *,
    codec: Codec,
    seed: int = 0,
    learning_rate: float = LEARNING_RATE,
    progress: Progress = silent,
) -> Delta:
    """The delta with its numbers trained, and a record of it.

    The divergence of answers is measured on a tenth of the texts, which is held out (at most 128; none of fewer than
    50). Where training does not lower it, the delta stays as it was, with a warning. Arithmetic is float32, whatever
    the weights' dtype. The same arguments give the same delta on the same machine.

    Args:
        delta: extracted from `tuned`, whose model must not be used elsewhere meanwhile.
        texts: like those that the task will answer, or rows of such. A step has 32; more than the steps have room for
            are not used.
        steps: of the optimiser, at least 1.
        codec: how the delta will be written: numbers are trained as it rounds them.
        learning_rate: after warm-up, in units of the numbers' own size.
        progress: is told of each step.

    Raises:
        DataError: there is no text, or no step.
        CheckpointError: answers of this kind cannot be compared, or the delta keeps nothing that could be trained.
        TrainingError: the fine-tune does not take these texts, or training diverged.
        CheckpointChangedError: a file of either checkpoint was written to meanwhile.
    """
    check_comparable(delta.kind)
    if steps < 1:
        raise DataError(f"found {steps} steps of distillation; expected at least 1")
    if not texts:
        raise DataError("a delta is distilled on texts, and there is none")
    training, held_out = _divided(texts, steps, seed)
    encoder = Encoder.of(base, delta)
    batches, judged = (_batches(encoder, part) for part in (training, held_out or training))
    with base.unchanged(), tuned.unchanged():
        pair = _Pair(Teacher(base, tuned), Student(base, tuned, delta, codec), delta.kind)
        before = pair.mean(judged, progress)
        _train(pair, _drawn(batches, steps, seed), learning_rate, progress)
        after = pair.mean(judged, progress)
        found = pair.student.delta()
    if not after < before:
        return replace(delta, warnings=(*delta.warnings, _in_vain(steps, before, after)))
    return replace(
        found, distilled=Distilled(steps=steps, texts=len(training), held_out=len(held_out), before=before, after=after)
    )


class _Pair:
    """A student and the teacher that it should answer like."""

    def __init__(self, teacher: Teacher, student: Student, kind: str) -> None:
        self._teacher, self.student, self._kind = teacher, student, kind

    def divergence(self, batch: Batch) -> torch.Tensor:
        mask = batch["attention_mask"].bool()
        return divergence(self._kind, self._teacher.config, self._teacher(batch), self.student(batch), mask)

    @torch.no_grad()
    def mean(self, batches: Sequence[Batch], progress: Progress) -> float:
        """The mean divergence of the texts of all batches."""
        sizes = [len(batch["input_ids"]) for batch in batches]
        total = 0.0
        for done, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            progress(Stage("comparing answers", f"{sum(sizes)} texts", done, len(batches)))
            total += float(self.divergence(batch)) * size
        return total / sum(sizes)


def _train(pair: _Pair, batches: Sequence[Batch], learning_rate: float, progress: Progress) -> None:
    """One step of Adam for each batch (Kingma and Ba 2014), with linear warm-up and decay."""
    parameters = pair.student.parameters()
    optimiser = torch.optim.Adam(parameters, learning_rate, betas=(0.9, 0.99))
    steps = len(batches)
    warm = max(1, int(steps * _WARM_UP))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    value = math.nan
    for done, batch in enumerate(batches):
        progress(Stage("distilling", f"divergence {value:.4f}" if done else "", done, steps))
        found = pair.divergence(batch)
        value = found.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"distillation diverged: the answers' divergence is {value} in step {done + 1} of {steps}; "
                f"use a lower learning rate than {learning_rate:g}, or a larger delta"
            )
        optimiser.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _LONGEST_STEP)
        optimiser.step()
        schedule.step()


def _divided(texts: Sequence[Readable], steps: int, seed: int) -> tuple[list[Readable], list[Readable]]:
    """Texts to train on, and texts to judge on; none of few."""
    chosen = random.Random(seed).sample(list(texts), len(texts))  # noqa: S311 - not for secrets
    apart = min(len(chosen) // 10, _MOST_HELD_OUT) if len(chosen) >= _FEWEST_TO_HOLD_OUT else 0
    return chosen[apart:][: steps * _BATCH], chosen[:apart]


def _batches(encoder: Encoder, texts: Sequence[Readable]) -> list[Batch]:
    """Batches of texts of similar length."""
    rows = sorted(encoder.rows(texts), key=len)
    starts = range(0, len(rows), _BATCH)
    return [collate(rows[start : start + _BATCH], encoder.pad_id, torch.device("cpu")) for start in starts]


def _drawn(batches: Sequence[Batch], steps: int, seed: int) -> list[Batch]:
    """As many batches as there are steps, each once before any comes again."""
    shuffle, drawn = random.Random(seed), list[Batch]()  # noqa: S311 - not for secrets
    while len(drawn) < steps:
        drawn += shuffle.sample(list(batches), len(batches))
    return drawn[:steps]


def _in_vain(steps: int, before: float, after: float) -> str:
    return (
        f"distillation in {steps} steps did not help: the divergence from the fine-tune's answers went from "
        f"{before:.4f} to {after:.4f}, so the values were left as they were; give more texts or more steps"
    )

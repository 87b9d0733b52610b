"""How far one model's answers are from another's for the same batch, as a loss that can be trained on.

Classes are compared by the KL divergence of the student's probabilities from the teacher's at a temperature (Hinton et
al. 2015, arXiv 1503.02531), in nats; numbers and vectors by their squared distance, as a share of the teacher's own
square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PretrainedConfig

from ken_core.errors import CheckpointError

Answers = Mapping[str, Any]
"""The output of a model of transformers, by name."""
Batch = Mapping[str, torch.Tensor]
"""A model's inputs, by name: int64, shape (rows, tokens)."""

_ENDS = ("start_logits", "end_logits")
_NEVER = -1e4
"""A logit of what cannot be; infinities would give NaN."""
_BY_TOKEN = ("token-classification", "text-generation", "fill-mask")
COMPARABLE = (*_BY_TOKEN, "text-classification", "question-answering", "feature-extraction")
"""The kinds of tasks whose answers can be compared."""


def check_comparable(kind: str) -> None:
    """Raise `CheckpointError` unless `divergence` is known for tasks of this kind."""
    if kind not in COMPARABLE:
        raise CheckpointError(
            f"answers of the kind {kind!r} cannot be compared, so such a delta is neither distilled nor checked; known "
            f"are {', '.join(COMPARABLE)}"
        )


def at_least_zero(found: float) -> float:
    """A divergence without what rounding put below 0; infinity for NaN, which no answer is near to."""
    return math.inf if math.isnan(found) else max(0.0, found)


def divergence(
    kind: str,
    config: PretrainedConfig,
    teacher: Answers,
    student: Answers,
    mask: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The mean divergence over a batch's answers: a float32 scalar, 0 where they are equal.

    Args:
        kind: of the task, one that `check_comparable` lets pass.
        config: the fine-tune's, which says what its logits mean.
        mask: bool, shape (rows, tokens), false for padding, which has no answer.
    """
    if kind == "feature-extraction":
        return _of_numbers(teacher["last_hidden_state"][mask], student["last_hidden_state"][mask])
    if kind == "question-answering":
        return torch.stack([_of_places(teacher[e], student[e], mask, temperature) for e in _ENDS]).mean()
    if kind == "text-classification":
        ours, theirs = teacher["logits"], student["logits"]
        if config.num_labels == 1 or config.problem_type == "regression":
            return _of_numbers(ours, theirs)
        if config.problem_type == "multi_label_classification":
            return _of_labels(ours, theirs, temperature)
        return _of_classes(ours, theirs, temperature)
    return _of_classes(teacher["logits"][mask], student["logits"][mask], temperature)


def _of_classes(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of one class for each row; logits of shape (rows, classes)."""
    wanted, found = ((t.float() / temperature).log_softmax(dim=-1) for t in (teacher, student))
    return (wanted.exp() * (wanted - found)).sum(dim=-1).mean() * temperature**2


def _of_labels(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of labels that each hold or not, summed over a row's labels."""
    ours, theirs = (t.float() / temperature for t in (teacher, student))
    holds = ours.sigmoid() * (logsigmoid(ours) - logsigmoid(theirs))
    holds_not = (-ours).sigmoid() * (logsigmoid(-ours) - logsigmoid(-theirs))
    return (holds + holds_not).sum(dim=-1).mean() * temperature**2


def _of_numbers(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    ours, theirs = teacher.float(), student.float()
    return (ours - theirs).square().sum() / ours.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def _of_places(teacher: torch.Tensor, student: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of one token for each row; logits of shape (rows, tokens). Padding cannot be chosen."""
    ours, theirs = (logits.float().masked_fill(~mask, _NEVER) for logits in (teacher, student))
    return _of_classes(ours, theirs, temperature)

"""Which of two models' answers to the same batch are the same: what a user of the task would call no change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig

Answers = Mapping[str, Any]
"""The output of a model of transformers, by name."""

SAME_DIRECTION = 0.99
"""Two vectors are one answer if their cosine is at least this. It is a convention; divergences say more."""

_ENDS = ("start_logits", "end_logits")


def gives_scores(kind: str, config: PretrainedConfig) -> bool:
    """Whether an answer is a number or several that are no classes, such as a reranker's; see `same_order`."""
    return kind == "text-classification" and (config.num_labels == 1 or config.problem_type == "regression")


def same_answers(
    kind: str, config: PretrainedConfig, first: Answers, second: Answers, mask: torch.Tensor
) -> torch.Tensor:
    """Whether each answer of a batch is the same: bool, shape (texts,), or (tokens,) where every token has an answer.

    The same best label; all the same labels where several may hold; the same first and last token; or nearly the same
    direction of vectors.

    Args:
        kind: of the task, one that `divergence.check_comparable` lets pass and that gives no scores (`gives_scores`).
        config: the fine-tune's, which says what its logits mean.
        mask: bool, shape (rows, tokens), false for padding, which has no answer.
    """
    if kind == "feature-extraction":
        ours, theirs = (answers["last_hidden_state"][mask].float() for answers in (first, second))
        alike: torch.Tensor = torch.cosine_similarity(ours, theirs, dim=-1) >= SAME_DIRECTION
        return alike
    if kind == "question-answering":
        starts, ends = (_best(_tokens(first[end], mask)) == _best(_tokens(second[end], mask)) for end in _ENDS)
        return starts & ends
    ours, theirs = (answers["logits"].float() for answers in (first, second))
    if kind == "text-classification":
        if config.problem_type == "multi_label_classification":
            same: torch.Tensor = (ours > 0) == (theirs > 0)
            return same.all(dim=-1)
        return _best(ours) == _best(theirs)
    return _best(ours[mask]) == _best(theirs[mask])


def classes_said(kind: str, config: PretrainedConfig, answers: Answers, mask: torch.Tensor) -> torch.Tensor | None:
    """What is said of each text or token, as numbers: shape (answers, 1), or (answers, labels) where several may hold.

    Arguments as in `same_answers`. None: answers of this kind are no classes.
    """
    if kind == "text-classification" and config.problem_type == "multi_label_classification":
        holds: torch.Tensor = answers["logits"] > 0
        return holds.long()
    if kind == "text-classification":
        return _best(answers["logits"])[:, None]
    return _best(answers["logits"][mask])[:, None] if kind == "token-classification" else None


def same_order(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whether each pair of texts is in the same order by both models' scores: bool, one element for each pair.

    A pair that the first model scores alike says nothing of an order, and is left out.

    Args:
        first, second: scores, shape (texts, scores).
    """
    rows, columns = torch.triu_indices(len(first), len(first), offset=1)
    ours, theirs = (scores.double()[rows] - scores.double()[columns] for scores in (first, second))
    return (ours.sign() == theirs.sign())[ours != 0]


def _best(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _tokens(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits of places in a text; padding cannot be chosen."""
    return logits.float().masked_fill(~mask, -torch.inf)

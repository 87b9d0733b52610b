"""The loss of a language model: how surprised it is by each token that it is to learn, given those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ken_core.errors import TrainingError
from ken_core.learned_rows import LearnedRow
from ken_core.passes import passes


class LanguageLoss:
    """Args: `pad_id` fills rows on the right, where no token is learned."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id

    def __call__(self, batch: Sequence[LearnedRow]) -> Iterator[torch.Tensor]:
        """The mean loss over all learned tokens of a batch, in parts that add up to it.

        Raises:
            TrainingError: the model does not take the rows.
        """
        total = sum(row.targets for row in batch)
        for rows in passes_of(batch):
            yield self._sum(rows) / total

    def mean(self, rows: Sequence[LearnedRow]) -> float:
        """The mean loss over all learned tokens of rows, without gradients."""
        with torch.inference_mode():
            total: float = sum(self._sum(some).item() for some in passes_of(rows))
        return total / sum(row.targets for row in rows)

    def _sum(self, rows: Sequence[LearnedRow]) -> torch.Tensor:
        logits, tokens = learned_logits(self._model, rows, self._pad_id)
        return cross_entropy(logits, tokens, reduction="sum")


def learned_logits(
    model: PreTrainedModel, rows: Sequence[LearnedRow], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says at each learned token of rows, one row after another.

    Returns:
        Logits, float32, shape (tokens, vocabulary), and the learned tokens themselves, int64, shape (tokens,).

    Raises:
        TrainingError: the model does not take the rows.
    """
    ids = pad_sequence([torch.tensor(r.ids) for r in rows], batch_first=True, padding_value=pad_id)
    learned = pad_sequence([torch.tensor(r.learned) for r in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    try:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise TrainingError(
            f"a {type(model).__name__} does not take these texts: {reason[0] if reason else error!r}; check that it "
            f"takes {ids.shape[1]} tokens (--max-length), and that its tokenizer belongs to it"
        ) from error
    chosen = learned[:, 1:]
    return logits[:, :-1][chosen].float(), ids[:, 1:][chosen]


def passes_of(rows: Sequence[LearnedRow]) -> Iterator[list[LearnedRow]]:
    """The rows of each pass of a model."""
    for places in passes([len(row) for row in rows]):
        yield [rows[place] for place in places]

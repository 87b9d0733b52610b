"""The loss of a language model: how surprised it is by each token that it is to learn, given those before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ken_core.errors import TrainingError
from ken_core.learned_rows import LearnedRow

_TOKENS_AT_ONCE = 2048
"""Of a pass, padding included. Logits over 50,000 tokens take 400 MB for as many, and their gradients again."""


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
        for rows in _passes(batch):
            yield self._sum(rows) / total

    def mean(self, rows: Sequence[LearnedRow]) -> float:
        """The mean loss over all learned tokens of rows, without gradients."""
        with torch.inference_mode():
            total: float = sum(self._sum(some).item() for some in _passes(rows))
        return total / sum(row.targets for row in rows)

    def _sum(self, rows: Sequence[LearnedRow]) -> torch.Tensor:
        ids = pad_sequence([torch.tensor(r.ids) for r in rows], batch_first=True, padding_value=self._pad_id)
        learned = pad_sequence([torch.tensor(r.learned) for r in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        try:
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"a {type(self._model).__name__} cannot be trained on these texts: {reason[0] if reason else error!r}; "
                f"check that it takes {ids.shape[1]} tokens (--max-length), and that its tokenizer belongs to it"
            ) from error
        chosen = learned[:, 1:]
        return cross_entropy(logits[:, :-1][chosen].float(), ids[:, 1:][chosen], reduction="sum")


def _passes(batch: Sequence[LearnedRow]) -> Iterator[list[LearnedRow]]:
    """Rows of similar length, as many as have at most `_TOKENS_AT_ONCE` tokens together; always at least one."""
    rows: list[LearnedRow] = []
    for row in sorted(batch, key=len):
        if rows and len(row) * (len(rows) + 1) > _TOKENS_AT_ONCE:
            yield rows
            rows = []
        rows.append(row)
    yield rows

"""The loss of a text classifier: how surprised it is by the labels of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ken_core.errors import TrainingError
from ken_core.examples import Example


class ClassificationLoss:
    """Args: `max_length` is the most tokens of a text; longer ones are cut."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._max_length = max_length

    def __call__(self, batch: Sequence[Example]) -> Iterator[torch.Tensor]:
        """The mean loss of a batch.

        Raises:
            TrainingError: the model does not take the texts.
        """
        ids: Mapping[Any, Any] = self._model.config.label2id or {}
        numbers = torch.tensor([ids[str(e.label)] for e in batch])
        texts, most = [e.input for e in batch], self._max_length
        try:
            inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
            loss: torch.Tensor = self._model(**inputs, labels=numbers).loss
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"a {type(self._model).__name__} cannot be trained on these texts: {reason[0] if reason else error!r}; "
                f"check that it takes {most} tokens (--max-length), and that its tokenizer and padding token belong to "
                "it"
            ) from error
        yield loss

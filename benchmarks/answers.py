"""A classifier's answers to test text, with which those of its deltas are compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ken_core import DeltaFile, deltafile, merge
from ken_core.checkpoint import Checkpoint
from ken_core.examples import Example
from ken_core.tokenization import Encoder, collate

_BATCH = 32


class Judge:
    """A fine-tune's answers to test text."""

    def __init__(self, tuned: Checkpoint, examples: Sequence[Example]) -> None:
        self._model = tuned.model.eval()
        encoder = Encoder(tuned, tuned.config, {})
        self._pad = encoder.pad_id
        encoded = encoder([e.input for e in examples])
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        self._rows = [encoded[i] for i in order]
        names = self._model.config.label2id
        self._right = torch.tensor([names[examples[i].label] for i in order])
        self._full = self._answers(self._model)

    def of(self, base: Checkpoint, file: DeltaFile) -> tuple[float, float, float]:
        """A delta's accuracy, the points that it loses, and the KL divergence of its answers (nats)."""
        model = copy.deepcopy(self._model)
        delta = deltafile.load(file.path, base)
        model.base_model.load_state_dict(merge(base, delta))
        found = self._answers(model)
        kl = torch.nn.functional.kl_div(found, self._full, log_target=True, reduction="batchmean")
        accuracy = self._accuracy(found)
        return accuracy, 100 * (self._accuracy(self._full) - accuracy), float(kl)

    def _accuracy(self, answers: torch.Tensor) -> float:
        return float((answers.argmax(dim=1) == self._right).float().mean())

    def _answers(self, model: PreTrainedModel) -> torch.Tensor:
        """Log probabilities, shape (texts, labels)."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(self._rows), _BATCH):
                batch = collate(self._rows[start : start + _BATCH], self._pad, torch.device("cpu"))
                found.append(model(**batch).logits.float().log_softmax(dim=1))
        return torch.cat(found)

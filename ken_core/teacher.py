"""The fine-tune itself, whose answers and layer inputs are what fits and distillation aim at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from ken_core.checkpoint import Checkpoint
from ken_core.errors import TrainingError


class Teacher:
    """A fine-tune with the base's own weights where its files lack some, as it is served.

    While it answers, its model must not be used elsewhere.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint) -> None:
        self._model, self.config = tuned.model, tuned.config
        self._backbone, self._prefix = tuned.backbone, tuned.prefix
        self._frozen = {tuned.prefix + name: base.backbone_tensors[name] for name in tuned.lacking}

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The model's output for a batch, by name.

        Raises:
            TrainingError: the model does not take these texts.
        """
        return dict(self._output(self._model, "", batch))

    @torch.no_grad()
    def read(self, batch: Mapping[str, torch.Tensor]) -> None:
        """Run the model's backbone alone, for what hooks see of its layers. Raises as `__call__` does."""
        self._output(self._backbone, self._prefix, batch)

    def _output(self, model: PreTrainedModel, prefix: str, batch: Mapping[str, torch.Tensor]) -> Any:
        frozen = {name.removeprefix(prefix): tensor for name, tensor in self._frozen.items()}
        try:
            return functional_call(model, frozen, kwargs=dict(batch))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"a {type(self._model).__name__} cannot answer these texts: {reason[0] if reason else error!r}; check "
                "that its tokenizer belongs to it, and whether it takes texts or pairs of texts"
            ) from error

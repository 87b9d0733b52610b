"""The pruned model, whose only parameters are the numbers of its delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call

from ken_core.bits import from_bits
from ken_core.checkpoint import Checkpoint, weights
from ken_core.codings import Codec
from ken_core.delta import Delta, merge
from ken_core.deltafile import codec_of_factors
from ken_core.errors import CheckpointError, TrainingError
from ken_core.trainable import TrainableFactors, TrainableValues


class Student:
    """The model that a delta makes of its base, computed in float32, with the delta's numbers to train.

    It borrows the fine-tune's modules and puts its own weights in their places while it answers. So it costs the memory
    of the changed weights, and the fine-tune's model must not be used elsewhere at that time.

    Raises:
        CheckpointError: the delta keeps nothing that could be trained.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint, delta: Delta, codec: Codec) -> None:
        self._delta, self._model, self._prefix = delta, tuned.model, tuned.prefix
        own, learnable = weights(tuned.backbone), dict(tuned.backbone.named_parameters())
        merged = {name: tensor for name, tensor in merge(base, delta).items() if name in own}
        whole = {**tuned.head_tensors, **{self._prefix + name: t for name, t in {**own, **merged}.items()}}
        self._fixed = {name: tensor.float() for name, tensor in whole.items() if tensor.is_floating_point()}
        ours, stored_as = base.backbone_tensors, codec_of_factors(delta, codec)
        self._factors = {n: TrainableFactors(ours[n], e, stored_as) for n, e in delta.lowrank.items()}
        self._values = {n: TrainableValues(ours[n], e, codec) for n, e in delta.sparse.items() if n in learnable}
        if not self._trained:
            raise CheckpointError(
                "the delta keeps nothing of the fine-tune's backbone, so it has no numbers to distil; keep more of it"
            )

    @property
    def _trained(self) -> dict[str, TrainableFactors | TrainableValues]:
        return {**self._factors, **self._values}

    def parameters(self) -> list[torch.Tensor]:
        """What an optimiser changes; float32, of several shapes."""
        return [parameter for trained in self._trained.values() for parameter in trained.parameters()]

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
        """The model's output for a batch, by name, through which gradients reach `parameters`."""
        shifted = {self._prefix + name: trained.weight() for name, trained in self._trained.items()}
        answers: Mapping[str, Any] = functional_call(self._model, {**self._fixed, **shifted}, kwargs=dict(batch))
        return answers

    def delta(self) -> Delta:
        """The delta with its numbers as they are now.

        Raises:
            TrainingError: one of them is NaN or infinite.
        """
        lowrank = {name: trained.entry() for name, trained in self._factors.items()}
        sparse = {name: trained.entry() for name, trained in self._values.items()}
        numbers = {name: from_bits(entry.values, entry.dtype) for name, entry in sparse.items()}
        numbers |= {name: torch.cat([entry.a.reshape(-1), entry.b.reshape(-1)]) for name, entry in lowrank.items()}
        if broken := sorted(name for name, found in numbers.items() if not found.isfinite().all()):
            raise TrainingError(
                f"distillation diverged: {broken[0]!r} holds NaN or infinity; use a lower learning rate"
            )
        return replace(self._delta, lowrank={**self._delta.lowrank, **lowrank}, sparse={**self._delta.sparse, **sparse})

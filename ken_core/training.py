"""A small training loop: AdamW, linear warm-up and decay, one seed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from ken_core.errors import TrainingError

E = TypeVar("E")
Loss = Callable[[Sequence[E]], Iterable[torch.Tensor]]
"""The loss of a batch, in parts that are computed one after another and add up to it."""


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. `max_length` is in tokens, `warmup` is a share of all steps."""

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_length: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """Progress after one optimiser step."""

    number: int
    total: int
    loss: float


def train(
    model: PreTrainedModel, examples: Sequence[E], loss: Loss[E], recipe: Recipe, progress: Callable[[Step], None]
) -> None:
    """Train all weights of a model, which is in evaluation mode afterwards.

    Raises:
        TrainingError: the loss is no finite number.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    per_epoch = -(-len(examples) // recipe.batch_size)
    total = per_epoch * recipe.epochs
    warm = max(1, int(total * recipe.warmup))

    def scale(step: int) -> float:
        return min((step + 1) / warm, (total - step) / max(1, total - warm))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, scale)
    shuffle = random.Random(recipe.seed)  # noqa: S311 - not for secrets
    model.train()
    number = 0
    for _ in range(recipe.epochs):
        for batch in _batches(examples, recipe.batch_size, shuffle):
            value = 0.0
            for part in loss(batch):
                part.backward()
                value += part.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"training diverged: the loss is {value} in step {number + 1} of {total}; "
                    f"use a lower learning rate than {recipe.learning_rate:g}"
                )
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            number += 1
            progress(Step(number, total, value))
    model.eval()


def _batches(examples: Sequence[E], size: int, shuffle: random.Random) -> list[list[E]]:
    order = shuffle.sample(list(examples), len(examples))
    return [order[i : i + size] for i in range(0, len(order), size)]

"""A small fine-tuning loop for text classification: AdamW, linear warm-up and decay, one seed.

It exists so that a base and a file of labelled text are enough to start. Anything that ends in a Hugging Face
folder is as good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ken_core.checkpoint import find_folder, quiet
from ken_core.examples import DataError, Example
from ken_core.new_folder import new_folder
from ken_core.tokenizer_files import copy_files


@dataclass(frozen=True)
class Recipe:
    """How to train. `max_length` in tokens, `warmup` as a share of all steps."""

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


def finetune(
    base: str,
    examples: Sequence[Example],
    out: Path,
    recipe: Recipe | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> None:
    """Fine-tune all weights of `base` and write a plain Hugging Face folder to `out`.

    Raises:
        CheckpointError: the base cannot be opened.
        DataError: fewer than two labels.
        FileExistsError: `out` exists and is not an empty folder.
    """
    recipe = recipe or Recipe()
    labels = sorted({e.label for e in examples})
    if len(labels) < 2:
        raise DataError(f"a classifier needs at least two labels, found {labels}")
    folder = find_folder(base)
    torch.manual_seed(recipe.seed)
    with new_folder(out) as new:
        with quiet(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
            )
        _train(model, tokenizer, examples, recipe, progress)
        with quiet(folder):
            model.save_pretrained(new)
        copy_files(folder, new)


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: Recipe,
    progress: Callable[[Step], None],
) -> None:
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
    ids: Mapping[Any, Any] = model.config.label2id or {}
    model.train()
    number = 0
    for _ in range(recipe.epochs):
        for batch in _batches(examples, recipe.batch_size, shuffle):
            inputs = tokenizer(
                [e.text for e in batch],
                padding=True,
                truncation=True,
                max_length=recipe.max_length,
                return_tensors="pt",
            )
            loss = model(**inputs, labels=torch.tensor([ids[e.label] for e in batch])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            number += 1
            progress(Step(number, total, loss.item()))
    model.eval()


def _batches(examples: Sequence[Example], size: int, shuffle: random.Random) -> list[list[Example]]:
    order = shuffle.sample(list(examples), len(examples))
    return [order[i : i + size] for i in range(0, len(order), size)]

"""A small fine-tuning loop for text classification: AdamW, linear warm-up and decay, one seed.

It exists so that a base and a file of labelled text are enough to start. Any other way of training that ends in a
Hugging Face folder does as well.
"""

from __future__ import annotations

import math
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

from ken_core.checkpoint import open_base, quiet
from ken_core.errors import CheckpointError, DataError, TrainingError
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from ken_core.labels import names_of, numbers_of
from ken_core.new_folder import new_folder
from ken_core.tokenizer_files import copy_files
from ken_core.writing import writing


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


def finetune(
    base: str,
    examples: Sequence[Example],
    out: Path,
    recipe: Recipe | None = None,
    progress: Callable[[Step], None] = lambda step: None,
    dev: Sequence[Example] = (),
) -> float | None:
    """Fine-tune all weights of `base` and write a plain Hugging Face folder to `out`.

    Integer labels are numbered by value and called "0", "1", and so on.

    Args:
        dev: examples to judge the fine-tune on, which are not trained on; see `ken_core.held_out`.

    Returns:
        The fine-tune's accuracy on `dev`: the share of its examples whose label gets the highest logit. None if `dev`
        is empty.

    Raises:
        CheckpointError: the base cannot be opened.
        DataError: the examples have fewer than two labels, or `dev` has one that they do not have.
        OutputError: `out` exists and is not an empty folder, or cannot be written.
        TrainingError: the model does not take the texts, or training diverged.
    """
    recipe = recipe or Recipe()
    labels = names_of([e.label for e in examples])
    if len(labels) < 2:
        raise DataError(f"a classifier needs at least two labels, found {labels}")
    numbers_of([e.label for e in dev], dict(enumerate(labels)))  # refuses strange labels before the work
    opened = open_base(base)
    folder = opened.folder
    torch.manual_seed(recipe.seed)
    with new_folder(out) as new, writing(out):
        with quiet(folder):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(labels),
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
                output_loading_info=True,
            )
        if info["missing_keys"] & {f"{model.base_model_prefix}.{name}" for name in opened.backbone_tensors}:
            raise CheckpointError(f"{folder} was saved with a wrapper around its model; save the model itself first")
        _train(model, tokenizer, examples, recipe, progress)
        with quiet(folder), writing(out):
            model.save_pretrained(new)
        copy_files(folder, new)
    return accuracy(model, opened, dev) if dev else None


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
    model.train()
    number = 0
    for _ in range(recipe.epochs):
        for batch in _batches(examples, recipe.batch_size, shuffle):
            loss = _loss(model, tokenizer, batch, recipe.max_length)
            value = loss.item()
            if not math.isfinite(value):
                raise TrainingError(
                    f"training diverged: the loss is {value} in step {number + 1} of {total}; "
                    f"use a lower learning rate than {recipe.learning_rate:g}"
                )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            number += 1
            progress(Step(number, total, value))
    model.eval()


def _loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Example], max_length: int
) -> torch.Tensor:
    ids: Mapping[Any, Any] = model.config.label2id or {}
    numbers = torch.tensor([ids[str(e.label)] for e in batch])
    texts = [e.input for e in batch]
    try:
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        loss: torch.Tensor = model(**inputs, labels=numbers).loss
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise TrainingError(
            f"a {type(model).__name__} cannot be trained on these texts: {reason[0] if reason else error!r}; check "
            f"that it takes {max_length} tokens (--max-length), and that its tokenizer and padding token belong to it"
        ) from error
    return loss


def _batches(examples: Sequence[Example], size: int, shuffle: random.Random) -> list[list[Example]]:
    order = shuffle.sample(list(examples), len(examples))
    return [order[i : i + size] for i in range(0, len(order), size)]

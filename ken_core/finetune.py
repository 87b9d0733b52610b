"""Fine-tuning all weights of a base: for text classification, or as a language model.

It exists so that a base and a file of text are enough to start. Any other way of training that ends in a Hugging Face
folder does as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from ken_core.checkpoint import Checkpoint, open_base, quiet
from ken_core.classification_loss import ClassificationLoss
from ken_core.decoding.choice import decoder_of
from ken_core.errors import CheckpointError, DataError, UndecodableError
from ken_core.evaluate import accuracy
from ken_core.examples import Example
from ken_core.generation_settings import FILE
from ken_core.labels import names_of, numbers_of
from ken_core.language_examples import LanguageExample
from ken_core.language_loss import LanguageLoss
from ken_core.learned_rows import RowMaker, end_ids
from ken_core.new_folder import new_folder
from ken_core.tokenization import Encoder
from ken_core.tokenizer_files import copy_files
from ken_core.training import Recipe, Step, train
from ken_core.writing import writing

__all__ = ["Learned", "Recipe", "Step", "finetune", "finetune_language_model"]


def finetune(
    base: str,
    examples: Sequence[Example],
    out: Path,
    recipe: Recipe | None = None,
    progress: Callable[[Step], None] = lambda step: None,
    dev: Sequence[Example] = (),
) -> float | None:
    """Fine-tune all weights of `base` for text classification, and write a plain Hugging Face folder to `out`.

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
        _refuse_wrapped(opened, model, info)
        train(model, examples, ClassificationLoss(model, tokenizer, recipe.max_length), recipe, progress)
        with quiet(folder), writing(out):
            model.save_pretrained(new)
        copy_files(folder, new)
    return accuracy(model, opened, dev) if dev else None


@dataclass(frozen=True)
class Learned:
    """What a language model was trained on, and how well it learned.

    Attributes:
        rows, tokens: that were learned from, and how many of their tokens were learned.
        cut: how many completions and chats were cut.
        longest: tokens of a row, no more than the base takes.
        at_limit: whether the base takes no longer rows.
        loss_before, loss: the mean loss over the tokens that are learned of held-out text, in nats a token: of the
            base, and of the fine-tune. None: nothing was held out. The perplexity is `exp(loss)`.
    """

    rows: int
    tokens: int
    cut: int
    longest: int
    at_limit: bool
    loss_before: float | None
    loss: float | None


def finetune_language_model(
    base: str,
    examples: Sequence[LanguageExample],
    out: Path,
    recipe: Recipe | None = None,
    progress: Callable[[Step], None] = lambda step: None,
    dev: Sequence[LanguageExample] = (),
) -> Learned:
    """Fine-tune all weights of `base` as a causal language model, and write a plain Hugging Face folder to `out`.

    Whole texts are learned, of the other examples what the model is to say. Arithmetic is float32; the folder has the
    base's dtype.

    Args:
        recipe: `max_length` is that of a row; see `ken_core.learned_rows`.
        dev: examples to judge the fine-tune on, which are not trained on.

    Raises:
        CheckpointError: the base cannot be opened, or has no causal language model's head.
        UndecodableError: the base cannot continue texts.
        DataError: the base has no chat template for chats, or one that does not suit; or examples are too long.
        OutputError: `out` exists and is not an empty folder, or cannot be written.
        TrainingError: the model does not take the texts, or training diverged.
    """
    recipe = recipe or Recipe(max_length=512)
    opened = open_base(base)
    _check_continues(opened)
    encoder = Encoder(opened, opened.config, {})
    rows_of = RowMaker(encoder, end_ids(opened), recipe.max_length)
    learned, held_out = rows_of(examples), rows_of(dev) if dev else None
    torch.manual_seed(recipe.seed)
    with new_folder(out) as new, writing(out):
        model = _language_model(opened)
        loss = LanguageLoss(model, encoder.pad_id)
        before = None if held_out is None else loss.mean(held_out.rows)
        train(model, learned.rows, loss, recipe, progress)
        model.to(dtype=opened.dtype)  # type: ignore[call-arg]
        model.generation_config = GenerationConfig()  # the base's own file is copied as it is
        with quiet(opened.folder), writing(out):
            model.save_pretrained(new)
        copy_files(opened.folder, new)
        _copy_generation_settings(opened.folder, new)
    after = None if held_out is None else loss.mean(held_out.rows)
    return Learned(
        rows=len(learned.rows),
        tokens=sum(row.targets for row in learned.rows),
        cut=learned.cut,
        longest=rows_of.longest,
        at_limit=rows_of.at_limit,
        loss_before=before,
        loss=after,
    )


def _check_continues(opened: Checkpoint) -> None:
    """Raise an error unless a base can continue texts."""
    folder = opened.folder
    with quiet(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise CheckpointError(
            f"{folder} is of architecture {config.model_type!r}, of which there is no causal language model; give "
            "labels for a classifier, or the base of a language model"
        )
    try:
        decoder_of(opened.backbone)
    except UndecodableError as error:
        raise UndecodableError(f"{error}; for a classifier, the data needs labels") from error


def _language_model(opened: Checkpoint) -> PreTrainedModel:
    """The base with its own head, in float32."""
    folder, options = opened.folder, {"trust_remote_code": False, "output_loading_info": True}
    with quiet(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    model, info = loaded
    _refuse_wrapped(opened, model, info)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {missing[0]!r}, which a {type(model).__name__} has: it was saved without the head of a "
            "language model; use the checkpoint that it was made from"
        )
    return cast(PreTrainedModel, model)


def _copy_generation_settings(folder: Path, new: Path) -> None:
    if (folder / FILE).is_file():
        shutil.copyfile(folder / FILE, new / FILE)
    else:
        (new / FILE).unlink(missing_ok=True)


def _refuse_wrapped(opened: Checkpoint, model: PreTrainedModel, info: dict[str, Any]) -> None:
    if info["missing_keys"] & {f"{model.base_model_prefix}.{name}" for name in opened.backbone_tensors}:
        raise CheckpointError(f"{opened.folder} was saved with a wrapper around its model; save the model itself first")

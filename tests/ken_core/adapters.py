"""Adapters made by peft itself on tiny bases, and what peft answers once it has merged them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    """A base, an adapter of it, and the model that peft merged of the two."""

    base: Path
    folder: Path
    merged: Any

    def answers(self, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            answer: torch.Tensor = self.merged(**batch)[0]
        return answer


def make_adapter(
    base: Path,
    auto_class: Any,
    config: Any,
    out: Path,
    *,
    seed: int = 3,
    edit: Callable[[Any], None] = lambda model: None,
    resize: int | None = None,
    unload: bool = True,
    **options: Any,
) -> Made:
    """Wrap a base as peft does, move everything it would train, save it, and merge a copy of what was saved.

    Args:
        edit: changes the wrapped model before it is saved.
        resize: give the model another number of tokens first.
        unload: take peft's wrappers off the merged model.
        options: for the model that is wrapped, for example its number of labels.
    """
    from peft import PeftModel, get_peft_model

    torch.manual_seed(seed)
    model = auto_class.from_pretrained(base, **options)
    if resize is not None:
        model.resize_token_embeddings(resize, mean_resizing=False)
    untrained = copy.deepcopy(model)
    wrapped = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        edit(wrapped)
    wrapped.save_pretrained(out)
    merged = PeftModel.from_pretrained(untrained, out)
    if unload:
        merged = merged.merge_and_unload()
    else:
        merged.merge_adapter()
    return Made(base, out, merged.requires_grad_(False).eval())

"""How each module of a backbone lays out a batch: which part of its input and output belongs to which row.

Found out by watching one forward pass over a small batch, whose numbers of rows and of tokens cannot be confused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import nn

ROWS, TOKENS = 3, 7
"""Of the batch that is watched: neither, nor their product, is 1 or a usual width."""


class Layout(Enum):
    """The first dimension of a module's input."""

    ROWS = "rows"
    """One entry a row."""
    FLAT = "flat"
    """The tokens of all rows, one row after the other."""
    SHARED = "shared"
    """One entry that all rows share, such as position ids: its result is repeated for each row before it is changed."""


def watched_batch(vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids, all different and none of them the first few, which special tokens are as a rule."""
    count = ROWS * TOKENS
    ids = torch.arange(count, device=device) + max(0, min(vocabulary - count, vocabulary // 2))
    return {
        "input_ids": ids.remainder(vocabulary).view(ROWS, TOKENS),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64, device=device),
    }


def layouts_of(backbone: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Layout]:
    """The layout of every module that has parameters of its own and uses one layout throughout; by name.

    A module that is missing was never called, or not with a tensor of one of the known layouts.
    """
    seen: dict[str, set[Layout | None]] = {}
    watches = [
        module.register_forward_hook(_watch(seen.setdefault(name, set())), with_kwargs=True)
        for name, module in backbone.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        with torch.inference_mode():
            backbone(**batch)
    finally:
        for watch in watches:
            watch.remove()
    found: dict[str, Layout] = {}
    for name, layouts in seen.items():
        (layout,) = layouts if len(layouts) == 1 else (None,)
        if layout is not None:
            found[name] = layout
    return found


def _watch(seen: set[Layout | None]) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = given_to(args, kwargs)
        same = given is not None and torch.is_tensor(output) and output.shape[:1] == given.shape[:1]
        seen.add(_layout(given) if given is not None and same else None)

    return note


def given_to(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The one tensor that a module is called with."""
    given = [value for value in (*args, *kwargs.values()) if value is not None]
    return given[0] if len(given) == 1 and torch.is_tensor(given[0]) and given[0].dim() else None


def _layout(given: torch.Tensor) -> Layout | None:
    return {ROWS: Layout.ROWS, ROWS * TOKENS: Layout.FLAT, 1: Layout.SHARED}.get(given.shape[0])

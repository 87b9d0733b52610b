"""How each module of a backbone lays out a batch: which part of its input and output belongs to which row.

Found out by watching one forward pass over a small batch, whose numbers of rows and of tokens cannot be confused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    ONE_ROW = "one row"
    """A single row of the tokens of all texts, one behind the other, as in a decode step."""


def watched_batch(vocabulary: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids, all different and none of them the first few, which special tokens are as a rule."""
    count = ROWS * TOKENS
    ids = torch.arange(count, device=device) + max(0, min(vocabulary - count, vocabulary // 2))
    return {
        "input_ids": ids.remainder(vocabulary).view(ROWS, TOKENS),
        "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64, device=device),
    }


def layouts_of(
    backbone: nn.Module, run: Callable[[], object], known: Callable[[torch.Tensor], Layout | None]
) -> dict[str, Layout]:
    """The layout of every module that has parameters of its own and uses one layout throughout; by name.

    A module that is missing was never called, or not with a tensor of one of the known layouts.

    Args:
        run: runs the backbone once, on the batch to watch.
        known: the layout of what a module is given; `of_rows` or `of_a_step`.
    """
    seen: dict[str, set[Layout | None]] = {}
    watches = [
        module.register_forward_hook(_watch(seen.setdefault(name, set()), known), with_kwargs=True)
        for name, module in backbone.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for watch in watches:
            watch.remove()
    found: dict[str, Layout] = {}
    for name, layouts in seen.items():
        (layout,) = layouts if len(layouts) == 1 else (None,)
        if layout is not None:
            found[name] = layout
    return found


def _watch(seen: set[Layout | None], known: Callable[[torch.Tensor], Layout | None]) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = given_to(args, kwargs)
        layout = None if given is None else known(given)
        first = 2 if layout is Layout.ONE_ROW else 1
        same = given is not None and torch.is_tensor(output) and output.shape[:first] == given.shape[:first]
        seen.add(layout if same else None)

    return note


def given_to(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The one tensor that a module is called with."""
    given = [value for value in (*args, *kwargs.values()) if value is not None]
    return given[0] if len(given) == 1 and torch.is_tensor(given[0]) and given[0].dim() else None


def of_rows(given: torch.Tensor) -> Layout | None:
    """In a pass over the watched batch, whose rows are padded to one length."""
    return {ROWS: Layout.ROWS, ROWS * TOKENS: Layout.FLAT, 1: Layout.SHARED}.get(given.shape[0])


def of_a_step(given: torch.Tensor) -> Layout | None:
    """In a decode step over the same texts."""
    if given.dim() > 1 and given.shape[:2] == (1, ROWS * TOKENS):
        return Layout.ONE_ROW
    return Layout.FLAT if given.shape[0] == ROWS * TOKENS else None


def by_row(tensor: torch.Tensor, rows: int, layout: Layout) -> torch.Tensor:
    """A module's input or output with a first dimension of rows; in a decode step every token is a row."""
    if layout is Layout.FLAT:
        return tensor.reshape(rows, -1, *tensor.shape[1:])
    if layout is Layout.ONE_ROW:
        return tensor.transpose(0, 1)
    return tensor.expand(rows, *tensor.shape[1:]) if layout is Layout.SHARED else tensor


def as_given(output: torch.Tensor, layout: Layout) -> torch.Tensor:
    """A result by rows in the form in which the module gives it."""
    if layout is Layout.FLAT:
        return output.flatten(0, 1)
    return output.transpose(0, 1) if layout is Layout.ONE_ROW else output

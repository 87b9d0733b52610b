"""Norms with other parameters for each row of a batch, computed for all rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from ken_core.mixing.changes import is_linear, with_parameters


def has_vectors_alone(module: nn.Module) -> bool:
    """Whether each of a module's own parameters is one vector, which every row can have one of."""
    found = list(module.parameters(recurse=False))
    return bool(found) and not is_linear(module) and all(p.dim() == 1 for p in found)


def with_own_vectors(
    module: nn.Module, modules: Sequence[nn.Module], group_of_row: torch.Tensor, dims: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that gives what modules of one class compute, each from the rows of its own group.

    A module that multiplies with its vectors and adds them, and no more, does so with a stack of them as well: that
    `module` is one is found out at start (`ken_core.mixing.trial`).

    Args:
        module: the base's.
        modules: each group's: the base's, or one with a task's own parameters. They are copied.
        group_of_row: int64, (rows,): the number of each row's group.
        dims: of what the function is given, (rows, ..., width).
    """
    stacks: dict[str, torch.Tensor] = {}
    rows, between = group_of_row.shape[0], [1] * (dims - 2)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        stack = torch.stack([one._parameters[name] for one in modules])  # type: ignore[misc]  # quicker than getattr
        if len(modules) < rows:
            stack = stack.index_select(0, group_of_row)
        stacks[name] = stack.view(rows, *between, -1)
    if type(module) is nn.LayerNorm:
        return partial(_layer_norm, module, stacks["weight"], stacks.get("bias"))
    return with_parameters(module, stacks)


def _layer_norm(
    module: nn.LayerNorm, weight: torch.Tensor, bias: torch.Tensor | None, given: torch.Tensor
) -> torch.Tensor:
    """Computed in float32 and rounded once, as torch does."""
    plain = functional.layer_norm(given.float(), module.normalized_shape, eps=module.eps)
    scaled = plain.mul_(weight) if bias is None else torch.addcmul(bias.float(), plain, weight.float())
    return scaled.to(given.dtype)

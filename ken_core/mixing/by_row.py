"""Norms with other parameters for each row of a batch, computed for all rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ken_core.mixing.changes import is_linear, with_parameters


def has_vectors_alone(module: nn.Module) -> bool:
    """Whether each of a module's own parameters is one vector, which every row can have one of."""
    found = list(module.parameters(recurse=False))
    return bool(found) and not is_linear(module) and all(p.dim() == 1 for p in found)


def with_own_vectors(
    module: nn.Module, given: torch.Tensor, modules: Sequence[nn.Module], group_of_row: torch.Tensor
) -> torch.Tensor:
    """What modules of one class compute, each from the rows of its own group.

    A module that multiplies with its vectors and adds them, and no more, does so with a stack of them as well: that
    `module` is one is found out at start (`ken_core.mixing.trial`).

    Args:
        module: the base's.
        given: (rows, ..., width).
        modules: each group's: the base's, or one with a task's own parameters.
        group_of_row: int64, (rows,): the number of each row's group.
    """
    stacks: dict[str, torch.Tensor] = {}
    between = [1] * (given.dim() - 2)
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        stack = torch.stack([one._parameters[name] for one in modules])  # type: ignore[misc]  # quicker than getattr
        if len(modules) < len(given):
            stack = stack.index_select(0, group_of_row)
        stacks[name] = stack.view(len(given), *between, -1)
    if type(module) is nn.LayerNorm:
        return _layer_norm(module, given, stacks["weight"], stacks.get("bias"))
    found: torch.Tensor = with_parameters(module, stacks)(given)
    return found


def _layer_norm(
    module: nn.LayerNorm, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Computed in float32 and rounded once, as torch does."""
    plain = functional.layer_norm(given.float(), module.normalized_shape, eps=module.eps)
    scaled = plain.mul_(weight) if bias is None else torch.addcmul(bias.float(), plain, weight.float())
    return scaled.to(given.dtype)

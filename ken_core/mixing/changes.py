"""What a delta changes in one module, in the form in which a mixed batch applies it to the rows of its task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ken_core.entries import LowRank
from ken_core.kernels.correction import Shift

_MOST_COPIED = 1 << 20
"""Parameters of a module that is copied whole for a task, such as a norm; what is larger does not mix."""


@dataclass(frozen=True)
class Factors:
    """A low-rank shift of what a module computes: ``x @ down @ up`` is added.

    Attributes:
        down: shape (inputs, rank), the scale included; of an embedding (rows, rank), looked up.
        up: shape (rank, outputs).
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True)
class ModuleChange:
    """All that one delta changes in one module. `own` stands alone, the others add up.

    Attributes:
        shift: kept elements of the weight, and the shift of the bias.
        factors: a low-rank shift of the weight.
        own: the module with the task's own parameters in it, which computes the task's rows in the base's place.
        looks_up: whether the module is an embedding.
        own_nbytes: bytes of the task's own parameters in `own`; its other parameters are the base's.
    """

    shift: Shift | None = None
    factors: Factors | None = None
    own: nn.Module | None = None
    looks_up: bool = False
    own_nbytes: int = 0

    @property
    def products(self) -> int:
        """Multiplications that it costs a token; an embedding's looked-up rows cost none."""
        sparse = 0 if self.shift is None or self.looks_up else int(self.shift.offsets[-1])
        return sparse + (0 if self.factors is None else self.factors.down.numel() + self.factors.up.numel())

    @property
    def nbytes(self) -> int:
        """Bytes beside those of the packed delta."""
        return self.own_nbytes + sum(part.nbytes for part in (self.shift, self.factors) if part is not None)


NO_CHANGE = ModuleChange()
"""Of a delta that leaves a module as the base has it."""

Changes = Mapping[str, ModuleChange]
"""What one delta changes, by module."""


def is_linear(module: nn.Module) -> bool:
    """Whether it computes ``x @ W.T + b`` or ``x @ W + b`` and nothing else."""
    return type(module) in (nn.Linear, Conv1D)


def is_embedding(module: nn.Module) -> bool:
    """Whether it looks its input up in its weight and does nothing else with it."""
    return type(module) is nn.Embedding and module.max_norm is None


def can_change(module: nn.Module) -> bool:
    """Whether a mixed batch can give some rows other parameters of this module than the base's."""
    own = sum(p.numel() for p in module.parameters(recurse=False))
    return is_linear(module) or is_embedding(module) or own <= _MOST_COPIED


def factors_of(module: nn.Module, shift: LowRank, dtype: torch.dtype, device: torch.device) -> Factors:
    """A low-rank shift of a module's weight."""
    first, second = (shift.a.T, shift.b.T) if type(module) is nn.Linear else (shift.b, shift.a)
    down = (first.to(torch.float32) * shift.scale).to(device=device, dtype=dtype).contiguous()
    return Factors(down, second.to(device=device, dtype=dtype).contiguous())


def with_parameters(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a module that shares everything but these parameters of its own."""
    made = copy.copy(module)
    made.__dict__.pop("forward", None)
    made._parameters = {**module._parameters, **{n: nn.Parameter(t, False) for n, t in parameters.items()}}
    if isinstance(made, nn.Embedding):
        made.num_embeddings = made.weight.shape[0]
    return made

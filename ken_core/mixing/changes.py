"""What a delta changes in one module, in the form in which a mixed batch applies it to the rows of its task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ken_core.entries import LowRank
from ken_core.factor_codec import codes_of
from ken_core.kernels.correction import Shift

_MOST_COPIED = 1 << 20
"""Parameters of a module that is copied whole for a task, such as a norm; what is larger does not mix."""


@dataclass(frozen=True)
class Factors:
    """A low-rank shift of what a module computes: ``(x @ down * sizes) @ up`` is added.

    Factors that a file quantised stay whole numbers of a byte each: a quarter of float32's memory, and no slower to
    multiply by, since reading a task's factors takes as long as the arithmetic for a few tokens.

    Attributes:
        down: shape (inputs, rank); of an embedding (rows, rank), looked up. The module's dtype, or int8.
        up: shape (rank, outputs), of the same dtype.
        sizes: shape (rank,), the module's dtype: what one of each component's numbers is worth; None: 1.
    """

    down: torch.Tensor
    up: torch.Tensor
    sizes: torch.Tensor | None = None

    def looked_up(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of `down`, (ids, rank), in the module's dtype."""
        found = self.down[ids]
        return found if self.sizes is None else found.to(self.sizes.dtype)

    def sized(self, inside: torch.Tensor) -> torch.Tensor:
        """What `up` is to be multiplied by, (tokens, rank); changes `inside`."""
        return inside if self.sizes is None else inside.mul_(self.sizes)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.down, self.up, self.sizes) if part is not None)


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
    def keeps_values(self) -> bool:
        """Whether elements of the weight are the task's own."""
        return self.shift is not None and self.shift.word >= 0

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
    wide, sizes = (shift.a.float(), shift.b.T.float()), None
    if _stays_quantised(shift, dtype):
        assert shift.bits is not None
        (a, near), (b, far) = (codes_of(part, shift.bits) for part in wide)
        sizes = (near * far * shift.scale).to(device=device, dtype=dtype)
    else:
        a, b = wide[0] * shift.scale, wide[1]
    down, up = (a.T, b) if type(module) is nn.Linear else (b.T, a)
    stored = dtype if sizes is None else torch.int8
    return Factors(down.to(device, stored).contiguous(), up.to(device, stored).contiguous(), sizes)


def factors_nbytes(shift: LowRank, dtype: torch.dtype) -> int:
    """Bytes of `factors_of`."""
    numbers = shift.a.numel() + shift.b.numel()
    return numbers + shift.rank * dtype.itemsize if _stays_quantised(shift, dtype) else numbers * dtype.itemsize


def _stays_quantised(shift: LowRank, dtype: torch.dtype) -> bool:
    """float16 might not hold the sum of so large whole numbers."""
    return shift.bits is not None and dtype != torch.float16


def with_parameters(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of a module that shares everything but these parameters of its own."""
    made = copy.copy(module)
    made.__dict__.pop("forward", None)
    made._parameters = {**module._parameters, **{n: nn.Parameter(t, False) for n, t in parameters.items()}}
    if isinstance(made, nn.Embedding):
        made.num_embeddings = made.weight.shape[0]
    return made

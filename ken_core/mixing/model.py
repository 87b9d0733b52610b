"""The resident model, run for rows of many tasks at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from ken_core.delta import Delta
from ken_core.entries import patched
from ken_core.errors import ExchangeError
from ken_core.kernels import correction_for
from ken_core.kernels.correction import Correction, Shift, conv1d_shift, embedding_shift, linear_shift, shift_nbytes
from ken_core.kernels.packed import Packed
from ken_core.mixing.changes import (
    ModuleChange,
    factors_nbytes,
    factors_of,
    is_embedding,
    is_linear,
    with_parameters,
)
from ken_core.mixing.layout import layouts_of, of_rows, watched_batch
from ken_core.mixing.mixer import Group, Mixer, Mixture
from ken_core.mixing.trial import PaddedPass, mixable
from ken_core.resident import Attached, ResidentModel


class MixedModel:
    """Runs mixed batches on a resident model, which holds the base meanwhile.

    Made on the thread that owns the weights, before any delta is active: every parameter is tried.

    Attributes:
        refused: why a tensor cannot be changed by a mixed batch, by name; a delta that changes one runs by exchange.
    """

    def __init__(self, resident: ResidentModel) -> None:
        resident.revert()
        self._resident = resident
        backbone = resident.backbone
        vocabulary = int(resident.checkpoint.config.get_text_config().vocab_size)
        with torch.inference_mode():
            batch = watched_batch(vocabulary, resident.device)
            try:
                layouts = layouts_of(backbone, lambda: backbone(**batch), of_rows)
            except Exception as error:  # it takes something else than token ids and a mask
                why = f"the backbone does not run on a small batch of texts: {error}"
                self.refused: Mapping[str, str] = {name: why for name, _ in backbone.named_parameters()}
                return
            self._mixer = Mixer(backbone, layouts, self.kernels)
            self.refused = mixable(backbone, self._mixer, layouts, PaddedPass(backbone, self._mixer, batch))

    @cached_property
    def kernels(self) -> Mapping[torch.dtype, tuple[Correction, torch.Tensor]]:
        """By dtype, the corrections and the arena that they read the base from."""
        resident = self._resident
        return {dtype: (correction_for(resident.device, dtype), arena) for dtype, arena in resident.arenas.items()}

    def why_not(self, delta: Delta) -> str:
        """Why a delta cannot take part in mixed batches, empty where it can."""
        return why_not(delta, self._resident, self.refused)

    def attach(self, delta: Delta) -> Attached:
        """Put a decoded delta on the device, ready for mixed batches; may run on any thread.

        Low-rank entries stay factors. Without them the delta can be activated as well.

        Raises:
            BaseMismatchError, CheckpointChangedError: as `ResidentModel.attach`.
        """
        attached = self._resident.attach(delta, expand=False)
        with self._resident.checkpoint.unchanged():
            attached.changes = {
                module: self._change(module, names, delta, attached.packed)
                for module, names in _by_module(delta).items()
            }
        return attached

    def bytes_to_attach(self, delta: Delta) -> int:
        """Bytes on the device that `attach` will take, or a little more."""
        resident = self._resident
        size = resident.bytes_to_attach(delta, expand=False)
        for name, shift in delta.lowrank.items():
            size += factors_nbytes(shift, resident.dtype_of(name))
        for name in (*delta.sparse, *delta.dense):
            module = resident.backbone.get_submodule(name.rpartition(".")[0])
            tensor = delta.dense.get(name, resident.checkpoint_tensor(name) if name in delta.sparse else None)
            assert tensor is not None
            wide = tensor.dim() == 2 and (is_linear(module) or is_embedding(module)) and name in delta.sparse
            size += shift_nbytes(tensor.shape, conv1d=type(module) is Conv1D) if wide else tensor.numel() * 4
        return size

    def run(self, groups: Sequence[tuple[Attached, int]], inputs: Mapping[str, torch.Tensor]) -> ModelOutput:
        """The backbone's output for groups of rows, one behind the other, each as its task's weights give it.

        Several threads may run batches at once, while the weights are the base's.

        Raises:
            ExchangeError: the weights are not the base's, or a delta's values are not its own.
        """
        check(self._resident, [attached for attached, _ in groups])
        return self._mixer.run(mixture_of(groups), inputs)

    def _change(
        self, module: str, names: Sequence[str], delta: Delta, packed: Mapping[torch.dtype, Packed]
    ) -> ModuleChange:
        ours, resident = self._resident.backbone.get_submodule(module), self._resident
        own: dict[str, torch.Tensor] = {}
        bias = factors = matrix = None
        for name in names:
            key = name.rpartition(".")[2]
            if name in delta.lowrank:
                factors = factors_of(ours, delta.lowrank[name], resident.dtype_of(name), resident.device)
            elif name in delta.dense:
                own[key] = resident.placed(delta.dense[name], name)
            elif key == "weight" and (is_linear(ours) or is_embedding(ours)):
                matrix = name
            elif key == "bias" and is_linear(ours):
                bias = self._tuned(name, delta).float() - self._of_the_base(name).float()
            else:
                own[key] = self._tuned(name, delta)
        shift = None
        if matrix is not None or bias is not None:
            shift = self._shift(matrix or f"{module}.weight", bias, packed)
        instead = with_parameters(ours, own) if own else None
        return ModuleChange(shift, factors, instead, is_embedding(ours), sum(t.nbytes for t in own.values()))

    def _shift(self, name: str, bias: torch.Tensor | None, packed: Mapping[torch.dtype, Packed]) -> Shift | None:
        """Of a matrix, and of the bias of its module."""
        resident = self._resident
        module = resident.backbone.get_submodule(name.rpartition(".")[0])
        kept = packed.get(resident.dtype_of(name)) or _nothing(resident.dtype_of(name), resident.device)
        start, shape = resident.start_of(name), resident.checkpoint_tensor(name).shape
        place = (kept, start, (shape[0], shape[1]))
        if is_embedding(module):
            return embedding_shift(*place)
        return linear_shift(*place, bias) if type(module) is nn.Linear else conv1d_shift(*place, bias)

    def _tuned(self, name: str, delta: Delta) -> torch.Tensor:
        return self._resident.placed(patched(self._resident.checkpoint_tensor(name), delta.sparse[name]), name)

    def _of_the_base(self, name: str) -> torch.Tensor:
        return self._resident.placed(self._resident.checkpoint_tensor(name), name)


def why_not(delta: Delta, resident: ResidentModel, refused: Mapping[str, str]) -> str:
    """Why a delta cannot be mixed, empty where it can.

    Args:
        refused: why a tensor cannot be changed, by name.
    """
    parameters = dict(resident.backbone.named_parameters())
    for name in (*delta.sparse, *delta.lowrank, *delta.dense):
        if name not in parameters:
            return f"{name} is no parameter of a module"
        if name in refused:
            return f"{name}: {refused[name]}"
    return ""


def check(resident: ResidentModel, attached: Sequence[Attached]) -> None:
    """Raise `ExchangeError` unless deltas can be mixed now."""
    if resident.active is not None or resident.poisoned:
        raise ExchangeError("a mixed batch needs the base's weights; revert first")
    if any(one.spoiled for one in attached):
        raise ExchangeError("a delta of this batch was spoiled by a failed exchange; attach it again")
    if any(one.changes is None for one in attached):
        raise ExchangeError("a delta of this batch takes part in no mixed batches")


def mixture_of(groups: Sequence[tuple[Attached, int]]) -> Mixture:
    """Of attached deltas, each with its number of rows."""
    return Mixture([Group(attached.changes or {}, rows) for attached, rows in groups])


def _by_module(delta: Delta) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in (*delta.sparse, *delta.lowrank, *delta.dense):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _nothing(dtype: torch.dtype, device: torch.device) -> Packed:
    """Of a delta that keeps no element of a dtype."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    return Packed(none, torch.empty(0, device=device, dtype=dtype), none.view(0, 4))

"""The one copy of the base's weights, and the deltas that take turns in it.

Weights live in one owned, aligned arena per dtype; the checkpoint stays open as a read-only map. Injecting a
delta is an in-place exchange: afterwards the delta's buffer holds the base's values, and a second exchange
restores them bit for bit. States: ``base``, ``packed`` (a delta exchanged into the arena), ``materialised``
(parameters pointed at full tensors; the arena holds the base).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from ken_core.checkpoint import Checkpoint, weights
from ken_core.delta import Delta, check_base
from ken_core.entries import expanded, patched
from ken_core.errors import ExchangeError, PoisonedError
from ken_core.fingerprint import Fingerprint, TensorId, identify
from ken_core.kernels import (
    Exchange,
    Packed,
    Segment,
    Switch,
    cast_values,
    exchange_for,
    pack,
    packed_nbytes,
    switch_for,
)
from ken_core.mixing.changes import Changes

_ALIGNMENT = 64
"""Elements: so a mask word never spans two tensors, and rows start on a cache line."""


@dataclass(eq=False)
class Attached:
    """A delta on the device: packed per arena dtype, whole tensors, its head. Made by `ResidentModel.attach`."""

    names: frozenset[str]
    """Resident tensors that the delta changes while it is active."""
    packed: Mapping[torch.dtype, Packed]
    whole: Mapping[str, torch.Tensor]
    """Tensors that parameters are pointed at: `dense` and `lowrank` entries, or all changed ones when materialised."""
    head: Mapping[str, torch.Tensor]
    materialised: bool
    spoiled: bool = field(default=False)
    """Its buffer may hold anything after a failed exchange: attach the delta again."""
    changes: Changes | None = None
    """What it changes in each module, for mixed batches (`ken_core.mixing`); None: it takes part in none."""
    expanded: bool = True
    """Whether its low-rank entries are whole tensors. Else only mixed batches can run it: it cannot be activated."""

    @cached_property
    def products(self) -> int:
        """Multiplications that it costs a token in a mixed batch."""
        return sum(change.products for change in (self.changes or {}).values())

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        tensors = (*self.whole.values(), *self.head.values())
        changes = () if self.changes is None else self.changes.values()
        parts = (*self.packed.values(), *tensors, *changes)
        return sum(part.nbytes for part in parts)


class ResidentModel:
    """The resident backbone of one base on one device.

    `attach` may run on any thread. Everything else is for whoever has the weights alone. The backbone may run on
    several threads at once while nobody changes the weights.

    Args:
        checkpoint: the base, whose mapped tensors are read again whenever a delta is decoded or materialised.
        device: where the weights live.
        dtype: the serving dtype; None keeps the checkpoint's.
        exchange_factory: gives the kernel for a device and dtype.
        switch_factory: gives the kernel that goes from one delta to another; None exchanges one after the other.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        exchange_factory: Callable[[torch.device, torch.dtype], Exchange] = exchange_for,
        switch_factory: Callable[[torch.device, torch.dtype], Switch] | None = switch_for,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self.fingerprint: Fingerprint = checkpoint.identity
        self._dtype = dtype
        self._weights = weights(checkpoint.backbone)
        self._start: dict[str, int] = {}
        with checkpoint.unchanged():
            self._arenas = self._fill_arenas()
        self._home = {name: self._view(name) for name in self._start}
        self._point(self._home)
        self._place_rest()
        self._exchanges = {d: exchange_factory(self.device, d) for d in self._arenas}
        self._switches = {d: switch_factory(self.device, d) for d in self._arenas} if switch_factory else {}
        self._table = self._identities()
        self._active: Attached | None = None
        self._poisoned: str | None = None

    @property
    def backbone(self) -> nn.Module:
        return self.checkpoint.backbone

    @property
    def active(self) -> Attached | None:
        """The delta the weights currently answer for; None is the base."""
        return self._active

    @property
    def poisoned(self) -> str | None:
        """Why the weights must not be used, None while they are sound."""
        return self._poisoned

    @property
    def nbytes(self) -> int:
        """Bytes of the resident weights."""
        return sum(a.nbytes for a in self._arenas.values())

    def attach(self, delta: Delta, *, materialised: bool = False, expand: bool = True) -> Attached:
        """Put a decoded delta on the device, ready to be activated.

        Args:
            materialised: as full tensors.
            expand: make whole tensors of low-rank entries. Without them it cannot be activated.

        Raises:
            BaseMismatchError: the delta was made against another base.
            CheckpointChangedError: the base's file was written to after it was opened.
        """
        check_base(delta, self.fingerprint.digest, self.checkpoint.name)
        whole = {n: self.placed(t, n) for n, t in delta.dense.items()}
        if materialised or (delta.lowrank and expand):
            whole |= self._made_of_the_base(delta, materialised)
        packed = {} if materialised else self._pack(delta)
        head = {n: self.placed(t, n) for n, t in delta.head.items()}
        names = frozenset(self._home.keys() & {*delta.sparse, *whole})
        return Attached(names, packed, whole, head, materialised, expanded=expand or not delta.lowrank)

    def bytes_to_attach(self, delta: Delta, *, materialised: bool = False, expand: bool = True) -> int:
        """Bytes on the device that `attach` will take: the `nbytes` of what it returns."""
        base = self.checkpoint.backbone_tensors
        made = {n: base[n] for n in (*(delta.lowrank if expand else ()), *(delta.sparse if materialised else ()))}
        whole = (*made.items(), *delta.dense.items(), *delta.head.items())
        size = sum(t.numel() * self._serving_dtype(t, n).itemsize for n, t in whole)
        if not materialised:
            for name, entry in delta.sparse.items():
                dtype = self._serving_dtype(base[name], name)
                size += packed_nbytes(base[name].numel(), entry.values.size, dtype, self.device)
        return size

    def _made_of_the_base(self, delta: Delta, materialised: bool) -> dict[str, torch.Tensor]:
        base = self.checkpoint.backbone_tensors
        with self.checkpoint.unchanged():
            made = {n: self.placed(expanded(base[n], e), n) for n, e in delta.lowrank.items()}
            if materialised:
                made |= {n: self.placed(patched(base[n], s), n) for n, s in delta.sparse.items()}
        return made

    def bytes_of(self, names: Iterable[str]) -> int:
        """Bytes of resident tensors: what a delta that changes them takes when materialised."""
        return sum(self._home[name].nbytes for name in names)

    def activate(self, attached: Attached | None) -> None:
        """Make the weights answer for `attached`, or for the base.

        Raises:
            ExchangeError: putting the delta in failed; the weights are the base's again, and the deltas that took part
                must be attached anew.
            PoisonedError: the weights could not be restored, now or earlier.
        """
        self._refuse_if_poisoned()
        if attached is self._active:
            return
        if attached is not None and not attached.expanded:
            raise ExchangeError("this attached delta has low-rank factors alone; it runs in mixed batches only")
        if attached is not None and attached.spoiled:
            raise ExchangeError("this attached delta was spoiled by a failed exchange; attach the delta again")
        leaving, self._active = self._active, None
        self._change(leaving, attached)
        self._active = attached

    def revert(self) -> None:
        """Return to the base, bit for bit."""
        self.activate(None)

    def verify(self) -> list[str]:
        """Names of resident tensors that are not bit for bit the base's, after reverting to the base."""
        self.revert()
        found = weights(self.backbone)
        return [name for name in self._home if not self._is_the_base(name, found)]

    @property
    def names(self) -> list[str]:
        """Of the resident tensors."""
        return list(self._home)

    def is_the_base(self, name: str) -> bool:
        """Whether one resident tensor is in its place and bit for bit the base's, while no delta is active."""
        return self._is_the_base(name, weights(self.backbone))

    def _is_the_base(self, name: str, found: Mapping[str, torch.Tensor]) -> bool:
        home = self._home[name]
        in_place = name in found and found[name].data_ptr() == home.data_ptr()
        return in_place and identify(home.cpu()) == self._table[name]

    def condemn(self, reason: str) -> None:
        """Refuse to answer from now on: the weights were found to differ from what they should be."""
        self._poisoned = reason

    def _change(self, leaving: Attached | None, entering: Attached | None) -> None:
        """Take one delta out and put another in; None stands for the base."""
        changing = [a for a in (leaving, entering) if a is not None]
        try:
            for dtype, arena in self._arenas.items():
                self._trade(dtype, arena, [a.packed[dtype] for a in changing if dtype in a.packed])
            pointed = {n: self._home[n] for n in leaving.whole} if leaving is not None else {}
            self._point({**pointed, **entering.whole} if entering is not None else pointed)
        except BaseException as error:
            for attached in changing:
                attached.spoiled = True
            self._restore(changing)
            if not isinstance(error, Exception):
                raise
            raise ExchangeError(f"injecting a delta failed, the base was restored: {error}") from error

    def _trade(self, dtype: torch.dtype, arena: torch.Tensor, packed: Sequence[Packed]) -> None:
        """Exchange the leaving delta, then the entering one; in one pass where both are packed and a kernel can."""
        if len(packed) == 2 and dtype in self._switches:
            self._switches[dtype](arena, *packed)
        else:
            for one in packed:
                self._exchanges[dtype](arena, one)

    def _restore(self, changing: Sequence[Attached]) -> None:
        """Copy every tensor that the deltas touch from the checkpoint's map; one that cannot be copied is poison."""
        touched = sorted(set().union(*(a.names for a in changing)))
        try:
            with self.checkpoint.unchanged():
                for name in touched:
                    if name in self.checkpoint.backbone_tensors:
                        self._home[name].copy_(self.checkpoint_tensor(name))
            self._point({n: self._home[n] for n in touched})
            wrong = [n for n in touched if identify(self._home[n].cpu()) != self._table[n]]
        except Exception as error:
            self._poisoned = f"restoring the base after a failed exchange failed too: {error}"
            self._refuse_if_poisoned()
        if wrong:
            self._poisoned = f"tensors differ from the base after a failed exchange: {', '.join(wrong)}"
            self._refuse_if_poisoned()

    @property
    def arenas(self) -> Mapping[torch.dtype, torch.Tensor]:
        """The flat weights, by dtype."""
        return self._arenas

    def start_of(self, name: str) -> int:
        """The first element of a resident tensor in its dtype's arena."""
        return self._start[name]

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which a tensor is served."""
        return self._serving_dtype(self.checkpoint_tensor(name), name)

    def checkpoint_tensor(self, name: str) -> torch.Tensor:
        """A base tensor from the checkpoint's map: CPU, stored dtype."""
        return self.checkpoint.backbone_tensors[name]

    def _refuse_if_poisoned(self) -> None:
        if self._poisoned is not None:
            raise PoisonedError(f"the resident weights must not be used: {self._poisoned}; restart this replica")

    def _fill_arenas(self) -> dict[torch.dtype, torch.Tensor]:
        """Lay all tensors out one after the other, each aligned, and copy them from the map."""
        sizes: dict[torch.dtype, int] = {}
        tensors = self.checkpoint.backbone_tensors
        for name, tensor in tensors.items():
            dtype = self._serving_dtype(tensor, name)
            self._start[name] = sizes.get(dtype, 0)
            sizes[dtype] = self._start[name] + -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT
        arenas = {d: torch.zeros(n, dtype=d, device=self.device) for d, n in sizes.items()}
        for name, tensor in tensors.items():
            start = self._start[name]
            arenas[self._serving_dtype(tensor, name)][start : start + tensor.numel()].copy_(tensor.reshape(-1))
        return arenas

    def _serving_dtype(self, tensor: torch.Tensor, name: str) -> torch.dtype:
        """The serving dtype, but for integers and for tensors that the architecture itself keeps in float32."""
        kept = getattr(self.backbone, "_keep_in_fp32_modules_strict", None) or ()
        if any(part in kept for part in name.split(".")):
            return tensor.dtype
        return self._dtype or tensor.dtype if tensor.is_floating_point() else tensor.dtype

    def _view(self, name: str) -> torch.Tensor:
        stored = self.checkpoint.backbone_tensors[name]
        arena = self._arenas[self._serving_dtype(stored, name)]
        start = self._start[name]
        return arena[start : start + stored.numel()].view(stored.shape)

    def _point(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self._weights[name].data = tensor

    def _place_rest(self) -> None:
        """Other buffers follow the weights; weights the files do not hold (a random pooler) become zeros."""
        for name, weight in self._weights.items():
            if name not in self._home:
                weight.data = self.placed(torch.zeros_like(weight), name)
                self._home[name] = weight.data
        for module in self.backbone.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not any(buffer is weight for weight in self._weights.values()):
                    # in its own dtype: rotary frequencies lose the answer in bfloat16
                    module._buffers[key] = buffer.to(self.device, copy=True)

    def placed(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A copy on the device in the serving dtype."""
        return tensor.to(device=self.device, dtype=self._serving_dtype(tensor, name), copy=True)

    def _identities(self) -> dict[str, TensorId]:
        """Hashes of the resident tensors in the serving dtype, which need not be the stored one."""
        return {n: identify(home.cpu()) for n, home in self._home.items()}

    def _pack(self, delta: Delta) -> dict[torch.dtype, Packed]:
        """One packed delta an arena; values are cast to the serving dtype once, here."""
        by_dtype: dict[torch.dtype, list[Segment]] = {}
        for name in sorted(delta.sparse):
            entry = delta.sparse[name]
            dtype = self._serving_dtype(self.checkpoint_tensor(name), name)
            values = cast_values(entry.values, entry.dtype, dtype)
            by_dtype.setdefault(dtype, []).append(Segment(self._start[name], entry.positions, values))
        return {dtype: pack(segments, dtype, self.device) for dtype, segments in by_dtype.items()}

"""Runs the resident backbone once for rows of many tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from ken_core.kernels.correction import Correction, Groups, Shift, Tokens
from ken_core.mixing.changes import Changes, Factors, is_embedding
from ken_core.mixing.layout import Layout, given_to


@dataclass(frozen=True)
class Group:
    """Rows of one task in a batch, and what its delta changes by module. Nothing: the base answers."""

    changes: Changes
    rows: int


class Mixture:
    """A batch on its way through the backbone: groups of rows, one behind the other.

    Attributes:
        rows: how many there are.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        ends, at = [], 0
        for group in groups:
            ends.append(slice(at, at + group.rows))
            at += group.rows
        self.rows = at
        self._groups = groups
        self._slices = ends
        self._touched = set().union(*(group.changes.keys() for group in groups))
        self._laid_out: tuple[torch.Tensor, Tokens] | None = None
        self._by_entries: dict[int, Groups] = {}

    def touches(self, module: str) -> bool:
        """Whether some task changes a module."""
        return module in self._touched

    def shifts(self, module: str) -> list[Shift | None]:
        """Of every group."""
        found = (group.changes.get(module) for group in self._groups)
        return [None if change is None else change.shift for change in found]

    def groups(self, entries: int, kernels: Correction) -> Groups:
        """As kernels want them, where each row has so many entries, one behind the other."""
        found = self._by_entries.get(entries)
        if found is None:
            slices = [slice(rows.start * entries, rows.stop * entries) for rows in self._slices]
            found = self._by_entries[entries] = kernels.groups(slices)
        return found

    def own(self, module: str) -> list[tuple[slice, nn.Module]]:
        """Modules that stand in the base's place, with the rows that each is for."""
        return [
            (rows, change.own)
            for rows, group in zip(self._slices, self._groups, strict=True)
            if (change := group.changes.get(module)) is not None and change.own is not None
        ]

    def factors(self, module: str) -> list[tuple[slice, Factors]]:
        """Low-rank shifts, with the rows that each is for."""
        return [
            (rows, change.factors)
            for rows, group in zip(self._slices, self._groups, strict=True)
            if (change := group.changes.get(module)) is not None and change.factors is not None
        ]

    def tokens(self, given: torch.Tensor, kernels: Correction) -> Tokens:
        """A module's input as kernels want it: modules with the same input (queries, keys, values) share it."""
        if self._laid_out is None or self._laid_out[0] is not given:
            groups = self.groups(given[0].numel() // given.shape[-1], kernels)
            self._laid_out = given, kernels.tokens(given.reshape(-1, given.shape[-1]), groups)
        return self._laid_out[1]


class Mixer:
    """Puts itself in front of modules of a backbone, and changes what they compute while a mixture is run.

    Several threads may run mixtures at once. Without one a module computes what it always did.

    Args:
        layouts: of the modules that a mixture may change.
        kernels: the corrections, by the dtype of a weight, and the arena that it lies in.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layouts: Mapping[str, Layout],
        kernels: Mapping[torch.dtype, tuple[Correction, torch.Tensor]],
    ) -> None:
        self._backbone = backbone
        self._kernels = kernels
        self._running = threading.local()
        for name, layout in layouts.items():
            module = backbone.get_submodule(name)
            module.forward = self._in_front_of(module.forward, module, name, layout)

    def run(self, mixture: Mixture, inputs: Mapping[str, torch.Tensor]) -> ModelOutput:
        """The backbone's output for all rows, each as its own task's weights give it.

        The weights must be the base's, and stay so until it returns.
        """
        self._running.mixture = mixture
        try:
            output: ModelOutput = self._backbone(**inputs, return_dict=True)
            return output
        finally:
            self._running.mixture = None

    def _in_front_of(self, forward: Callable[..., Any], module: nn.Module, name: str, layout: Layout) -> Any:
        running = self._running

        def changed(*args: Any, **kwargs: Any) -> Any:
            mixture: Mixture | None = getattr(running, "mixture", None)
            if mixture is None or not mixture.touches(name):
                return forward(*args, **kwargs)
            given = given_to(args, kwargs)
            if given is None:
                raise RuntimeError(f"{name} was called with one tensor when it was watched, and is not now")
            return self._apply(mixture, given, forward, module, name, layout)

        return changed

    def _apply(
        self,
        mixture: Mixture,
        given: torch.Tensor,
        forward: Callable[..., Any],
        module: nn.Module,
        name: str,
        layout: Layout,
    ) -> torch.Tensor:
        own = mixture.own(name)
        output = forward(_known(given, module) if own else given)
        entry = given
        if layout is Layout.FLAT:
            entry, output = given.unflatten(0, (mixture.rows, -1)), output.unflatten(0, (mixture.rows, -1))
        elif layout is Layout.SHARED:
            entry = given.expand(mixture.rows, *given.shape[1:])
            output = output.expand(mixture.rows, *output.shape[1:]).contiguous()
        if entry.shape[0] != mixture.rows or output.shape[0] != mixture.rows:
            raise RuntimeError(f"{name} was called with {tuple(given.shape)} for a batch of {mixture.rows} rows")
        for rows, instead in own:
            output[rows] = instead(entry[rows])
        self._shift(mixture, entry, output, module, name)
        _add_products(output, entry, mixture.factors(name))
        whole: torch.Tensor = output.flatten(0, 1) if layout is Layout.FLAT else output
        return whole

    def _shift(self, mixture: Mixture, given: torch.Tensor, output: torch.Tensor, module: nn.Module, name: str) -> None:
        shifts = mixture.shifts(name)
        if all(shift is None for shift in shifts):
            return
        kernels, arena = self._kernels[module.weight.dtype]  # type: ignore[index]
        flat = output.view(-1, output.shape[-1])
        if is_embedding(module):
            groups = mixture.groups(given[0].numel(), kernels)
            kernels.embedding(flat, given.reshape(-1), groups, arena, shifts)
        else:
            correct = kernels.linear if type(module) is nn.Linear else kernels.conv1d
            correct(flat, mixture.tokens(given, kernels), arena, shifts)


def _known(ids: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """A task's own embedding may have rows for tokens that the base has none of: the base looks up another there."""
    return ids.clamp(max=module.num_embeddings - 1) if isinstance(module, nn.Embedding) else ids


def _add_products(output: torch.Tensor, given: torch.Tensor, shifts: Sequence[tuple[slice, Factors]]) -> None:
    """Low-rank shifts, each on its own task's rows. Those of one rank are multiplied together."""
    by_rank: dict[int, list[tuple[slice, Factors]]] = {}
    for rows, factors in shifts:
        by_rank.setdefault(factors.up.shape[0], []).append((rows, factors))
    for alike in by_rank.values():
        if len(alike) == 1 or given.dim() != 3:
            for rows, factors in alike:
                _add_product(output[rows], given[rows], factors)
            continue
        places = torch.cat([torch.arange(rows.start, rows.stop, device=output.device) for rows, _ in alike])
        down = torch.cat([f.down.expand(rows.stop - rows.start, -1, -1) for rows, f in alike])
        up = torch.cat([f.up.expand(rows.stop - rows.start, -1, -1) for rows, f in alike])
        output.index_add_(0, places, torch.bmm(torch.bmm(given[places], down), up))


def _add_product(output: torch.Tensor, given: torch.Tensor, factors: Factors) -> None:
    narrow = given @ factors.down if given.is_floating_point() else factors.down[given]
    flat = output.view(-1, output.shape[-1])
    torch.addmm(flat, narrow.reshape(-1, narrow.shape[-1]), factors.up, out=flat)

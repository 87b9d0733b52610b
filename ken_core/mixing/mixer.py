"""Runs the resident backbone once for rows of many tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from ken_core.decoding import few_rows
from ken_core.kernels import few_tokens
from ken_core.kernels.correction import Correction, Groups, Shift, Tokens
from ken_core.mixing.by_row import has_vectors_alone, with_own_vectors
from ken_core.mixing.changes import NO_CHANGE, Changes, Factors, ModuleChange, is_embedding
from ken_core.mixing.layout import Layout, as_given, by_row, given_to
from ken_core.mixing.products import add_products

P = TypeVar("P")


@dataclass(frozen=True)
class Group:
    """Rows of one task in a batch, and what its delta changes by module. Nothing: the base answers."""

    changes: Changes
    rows: int


@dataclass(frozen=True)
class Parts:
    """What the groups of a mixture change in one module.

    Attributes:
        changes: of every group.
        shifts: of every group, None for those without one.
        biases, own, factors: of the groups that have such a part, with their rows.
    """

    changes: Sequence[ModuleChange]
    shifts: Sequence[Shift | None]
    biases: Sequence[tuple[slice, torch.Tensor]]
    own: Sequence[tuple[slice, nn.Module]]
    factors: Sequence[tuple[slice, Factors]]


class Mixture:
    """A batch on its way through the backbone: groups of rows, one behind the other.

    In a decode step a row is a token. A mixture may be used again for groups of as many rows of the same tasks, while
    the weights are the base's. What can be made ready for one module is kept.

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
        self._kept = {name for group in groups for name, change in group.changes.items() if change.keeps_values}
        self._laid_out: tuple[torch.Tensor, Tokens] | None = None
        self._by_entries: dict[int, Groups] = {}
        self._tiles: dict[str, few_tokens.Tiles] = {}
        self._parts: dict[str, Parts] = {}
        self._stacked: dict[tuple[str, int], Callable[[torch.Tensor], torch.Tensor]] = {}
        self._group_of_row: torch.Tensor | None = None

    def touches(self, module: str) -> bool:
        """Whether some task changes a module."""
        return module in self._touched

    def has_few_tokens_of(self, module: str) -> bool:
        """Whether some task keeps values of its own in a module's weight, and all rows are few enough tokens to be
        multiplied with each task's own weight (`few_tokens`)."""
        return module in self._kept and self.rows <= few_tokens.MOST_MIXED

    def parts(self, module: str) -> Parts:
        """What its groups change in a module."""
        found = self._parts.get(module)
        if found is None:
            changes = [group.changes.get(module, NO_CHANGE) for group in self._groups]
            shifts = [change.shift for change in changes]
            found = self._parts[module] = Parts(
                changes,
                shifts,
                self.with_rows([None if shift is None else shift.bias for shift in shifts]),
                self.with_rows([change.own for change in changes]),
                self.with_rows([change.factors for change in changes]),
            )
        return found

    def stacked(self, name: str, module: nn.Module, given: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What computes a module that has nothing but vectors, for all rows at once; `given` is by rows."""
        found = self._stacked.get((name, given.dim()))
        if found is None:
            modules = [module if change.own is None else change.own for change in self.parts(name).changes]
            made = with_own_vectors(module, modules, self.group_of_row(given.device), given.dim())
            found = self._stacked[name, given.dim()] = made
        return found

    def with_rows(self, parts: Sequence[P | None]) -> list[tuple[slice, P]]:
        """Of every group that has one of these parts, its rows and the part."""
        return [(rows, part) for rows, part in zip(self._slices, parts, strict=True) if part is not None]

    def group_of_row(self, device: torch.device) -> torch.Tensor:
        """int64, (rows,): the number of each row's group."""
        if self._group_of_row is None:
            rows = torch.tensor([group.rows for group in self._groups])
            self._group_of_row = torch.arange(len(rows)).repeat_interleave(rows).to(device)
        return self._group_of_row

    def groups(self, entries: int, kernels: Correction) -> Groups:
        """As kernels want them, where each row has so many entries, one behind the other."""
        found = self._by_entries.get(entries)
        if found is None:
            slices = [slice(rows.start * entries, rows.stop * entries) for rows in self._slices]
            found = self._by_entries[entries] = kernels.groups(slices)
        return found

    def tokens(self, given: torch.Tensor, rows: torch.Tensor, kernels: Correction) -> Tokens:
        """A module's input as kernels want it: modules with the same input (queries, keys, values) share it.

        Args:
            rows: the input by rows.
        """
        if self._laid_out is None or self._laid_out[0] is not given:
            groups = self.groups(rows[0].numel() // rows.shape[-1], kernels)
            self._laid_out = given, kernels.tokens(rows.reshape(-1, rows.shape[-1]), groups)
        return self._laid_out[1]

    def tiles(self, module: str) -> few_tokens.Tiles:
        """Of all rows, with the shifts of a module's weight."""
        found = self._tiles.get(module)
        if found is None:
            groups = list(zip(self._slices, self.parts(module).shifts, strict=True))
            found = self._tiles[module] = few_tokens.tiles_of(groups)
        return found


class Mixer:
    """Puts itself in front of modules of a backbone, and changes what they compute while a mixture is run.

    Several threads may run mixtures at once. Without one a module computes what it always did.

    Args:
        layouts: of the modules that a mixture may change.
        few: multiply few tokens with each task's own weights, in place of correcting the base's result.
        kernels: the corrections, by the dtype of a weight, and the arena that it lies in.

    Attributes:
        stacking: modules that compute all rows at once with each row's own vectors; others run once a task. Begins with
            all that have nothing but vectors.
    """

    def __init__(
        self,
        backbone: nn.Module,
        layouts: Mapping[str, Layout],
        kernels: Mapping[torch.dtype, tuple[Correction, torch.Tensor]],
        few: bool = False,
    ) -> None:
        self._backbone = backbone
        self._kernels = kernels
        self._few = few
        self._running = threading.local()
        self.stacking = {name for name in layouts if has_vectors_alone(backbone.get_submodule(name))}
        for name, layout in layouts.items():
            module = backbone.get_submodule(name)
            module.forward = self._in_front_of(module.forward, module, name, layout)

    def run(self, mixture: Mixture, inputs: Mapping[str, torch.Tensor]) -> ModelOutput:
        """The backbone's output for all rows, each as its own task's weights give it.

        The weights must be the base's, and stay so until it returns.
        """
        with self.mixing(mixture):
            output: ModelOutput = self._backbone(**inputs, return_dict=True)
            return output

    @contextmanager
    def mixing(self, mixture: Mixture) -> Iterator[None]:
        """Within it, what this thread calls the backbone with is a mixture."""
        self._running.mixture = mixture
        try:
            yield
        finally:
            self._running.mixture = None

    def _in_front_of(self, before: Callable[..., Any], module: nn.Module, name: str, layout: Layout) -> Any:
        running, forward = self._running, before
        linear = module if type(module) is nn.Linear and self._few and few_tokens.takes(module.weight) else None
        if linear is not None:
            forward = partial(few_rows.linear, linear)

        def changed(*args: Any, **kwargs: Any) -> Any:
            mixture: Mixture | None = getattr(running, "mixture", None)
            if mixture is None:
                return before(*args, **kwargs)
            if not mixture.touches(name):
                return forward(*args, **kwargs)
            given = given_to(args, kwargs)
            if given is None:
                raise RuntimeError(f"{name} was called with one tensor when it was watched, and is not now")
            rows = by_row(given, mixture.rows, layout)
            if rows.shape[0] != mixture.rows:
                raise RuntimeError(f"{name} was called with {tuple(given.shape)} for a batch of {mixture.rows} rows")
            if name in self.stacking:
                output = mixture.stacked(name, module, rows)(rows)
            elif linear is not None and mixture.has_few_tokens_of(name):
                output = _multiplied(mixture, name, linear, rows)
            else:
                parts = mixture.parts(name)
                output = by_row(forward(_known(given, module) if parts.own else given), mixture.rows, layout)
                output = output.contiguous() if layout is Layout.SHARED else output
                self._correct(mixture, given, rows, output, parts, module)
            return as_given(output, layout)

        return changed

    def _correct(
        self,
        mixture: Mixture,
        given: torch.Tensor,
        rows: torch.Tensor,
        output: torch.Tensor,
        parts: Parts,
        module: nn.Module,
    ) -> None:
        """Add to the base's output, or put in its place, what each task's rows have other than the base."""
        for some, instead in parts.own:
            output[some] = instead(rows[some])
        if any(parts.shifts):
            kernels, arena = self._kernels[module.weight.dtype]  # type: ignore[index]
            flat = output.view(-1, output.shape[-1])
            if is_embedding(module):
                groups = mixture.groups(rows[0].numel(), kernels)
                kernels.embedding(flat, rows.reshape(-1), groups, arena, parts.shifts)
            else:
                correct = kernels.linear if type(module) is nn.Linear else kernels.conv1d
                correct(flat, mixture.tokens(given, rows, kernels), arena, parts.shifts)
        add_products(output, rows, parts.factors)


def _multiplied(mixture: Mixture, name: str, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """What a linear layer computes of few tokens, each with the weights of its own task."""
    parts = mixture.parts(name)
    output = few_tokens.product(rows.reshape(-1, rows.shape[-1]), module.weight, mixture.tiles(name))
    if module.bias is not None:
        output += module.bias
    for some, bias in parts.biases:
        output[some] += bias
    output = output.view(*rows.shape[:-1], -1)
    for some, instead in parts.own:
        output[some] = instead(rows[some])
    add_products(output, rows, parts.factors)
    return output


def _known(ids: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """A task's own embedding may have rows for tokens that the base has none of: the base looks up another there."""
    return ids.clamp(max=module.num_embeddings - 1) if isinstance(module, nn.Embedding) else ids

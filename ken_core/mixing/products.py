"""Low-rank shifts of what a module computes, each added to the rows of its own task.

Ranks differ by task and by matrix. Each shift is two products of its own, unless its neighbours in the batch are of the
same shape and of low rank: then one copy of all their factors saves more calls than it costs. A device that launches
every product by itself takes all neighbours together, their ranks filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ken_core.mixing.changes import Factors

Shifted = tuple[slice, Factors]
"""Rows of a batch, and the shift that is theirs."""

_LOW = 32
"""Up to this rank, copying factors takes less time on a CPU than a call for each."""


def add_products(
    output: torch.Tensor, given: torch.Tensor, shifts: Sequence[Shifted], *, launches: bool | None = None
) -> None:
    """Add each shift to its rows of `output`.

    Args:
        output: (rows, ..., outputs), in one piece.
        given: (rows, ..., inputs); of an embedding ids, (rows, ...).
        shifts: in the order of their rows.
        launches: whether the device launches every product by itself; None: a GPU does.
    """
    if shifts and not given.is_floating_point():
        for rows, factors in shifts:
            _add_to(output[rows], factors.looked_up(given[rows].reshape(-1)), factors)
        return
    for run in _runs(shifts, launches=output.is_cuda if launches is None else launches):
        if len(run) > 1:
            _add_together(output, given, [factors for _, factors in run], slice(run[0][0].start, run[-1][0].stop))
        else:
            ((rows, factors),) = run
            _add_to(output[rows], given[rows].reshape(-1, given.shape[-1]) @ factors.down.to(given.dtype), factors)


def _add_to(output: torch.Tensor, inside: torch.Tensor, factors: Factors) -> None:
    """Add what the second factor makes of `inside`, (tokens, rank)."""
    output.view(-1, output.shape[-1]).addmm_(factors.sized(inside), factors.up.to(output.dtype))


def _add_together(output: torch.Tensor, given: torch.Tensor, shifts: Sequence[Factors], rows: slice) -> None:
    """Shifts that are for as many rows each, one behind the other."""
    x = given[rows].reshape(len(shifts), -1, given.shape[-1])
    down = pad_sequence([factors.down.T for factors in shifts], batch_first=True).to(given.dtype)
    up = pad_sequence([factors.up for factors in shifts], batch_first=True).to(output.dtype)
    inside = torch.bmm(x, down.transpose(1, 2))
    if any(factors.sizes is not None for factors in shifts):
        sizes = [given.new_ones(f.up.shape[0]) if f.sizes is None else f.sizes for f in shifts]
        inside.mul_(pad_sequence(sizes, batch_first=True)[:, None])
    output[rows].view(len(shifts), -1, output.shape[-1]).baddbmm_(inside, up)


def _runs(shifts: Sequence[Shifted], *, launches: bool) -> Iterator[list[Shifted]]:
    """Neighbours that are multiplied together.

    Args:
        launches: whether the device launches every product by itself.
    """
    run: list[Shifted] = []
    for shift in shifts:
        if run and not _goes_with(run[-1], shift, launches):
            yield run
            run = []
        run.append(shift)
    if run:
        yield run


def _goes_with(one: Shifted, other: Shifted, launches: bool) -> bool:
    (rows, factors), (more, another) = one, other
    together = rows.stop == more.start and _count(rows) == _count(more) and factors.down.dtype == another.down.dtype
    return together and (launches or (_shape(factors) == _shape(another) and factors.up.shape[0] <= _LOW))


def _count(rows: slice) -> Any:
    return rows.stop - rows.start


def _shape(factors: Factors) -> tuple[int, ...]:
    return (*factors.down.shape, *factors.up.shape)

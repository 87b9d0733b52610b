"""Low-rank shifts of what a module computes, each added to the rows of its own task."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ken_core.mixing.changes import Factors

Shifted = tuple[slice, Factors]
"""Rows of a batch, and the shift that is theirs."""


def add_products(output: torch.Tensor, given: torch.Tensor, shifts: Sequence[Shifted]) -> None:
    """Add each shift to its rows of `output`.

    Shifts of one rank that are for as many rows each are multiplied together: factors are copied once a task, which
    takes less time than many small products and no less on a device that launches each product by itself.

    Args:
        output: (rows, ..., outputs), in one piece.
        given: (rows, ..., inputs); of an embedding ids, (rows, ...).
    """
    if not shifts:
        return
    if not given.is_floating_point():
        for rows, factors in shifts:
            flat = output[rows].view(-1, output.shape[-1])
            flat.addmm_(factors.down[given[rows].reshape(-1)], factors.up)
        return
    alike: dict[tuple[int, int], list[Shifted]] = {}
    for rows, factors in shifts:
        alike.setdefault((rows.stop - rows.start, factors.up.shape[0]), []).append((rows, factors))
    for (count, _), parts in alike.items():
        if len(parts) == 1:
            (rows, factors) = parts[0]
            flat = output[rows].view(-1, output.shape[-1])
            flat.addmm_(given[rows].reshape(-1, given.shape[-1]) @ factors.down, factors.up)
        else:
            _add_together(output, given, count, parts)


def _add_together(output: torch.Tensor, given: torch.Tensor, count: int, parts: Sequence[Shifted]) -> None:
    """Shifts of one rank, for `count` rows each."""
    down = torch.stack([factors.down for _, factors in parts])
    up = torch.stack([factors.up for _, factors in parts])
    first, last = parts[0][0].start, parts[-1][0].stop
    if last - first == count * len(parts):  # their rows follow one another
        x = given[first:last].reshape(len(parts), -1, given.shape[-1])
        output[first:last].view(len(parts), -1, output.shape[-1]).baddbmm_(torch.bmm(x, down), up)
        return
    places = torch.cat([torch.arange(rows.start, rows.stop, device=output.device) for rows, _ in parts])
    x = given[places]
    sums = torch.bmm(torch.bmm(x.view(len(parts), -1, x.shape[-1]), down), up)
    output.index_add_(0, places, sums.view(len(places), *output.shape[1:]))

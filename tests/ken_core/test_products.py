"""Low-rank shifts are added to the rows of their own tasks, in any mixture of ranks, forms and numbers of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ken_core.entries import LowRank, expanded
from ken_core.factor_codec import decode_components, encode_components
from ken_core.mixing.changes import Factors, factors_nbytes, factors_of
from ken_core.mixing.products import Shifted, add_products

INPUTS, OUTPUTS, TOKENS = 12, 20, 3
GROUP = st.tuples(st.integers(1, 3), st.integers(0, 40), st.sampled_from([None, 4, 8]))
"""Rows, rank (0: the task changes nothing here), and bits of a number."""


def shift_of(rank: int, bits: int | None, seed: int, shape: tuple[int, int] = (OUTPUTS, INPUTS)) -> LowRank:
    """Random factors; quantised ones as a file gives them back."""
    make = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, shape[1], generator=make), torch.randn(shape[0], rank, generator=make)
    if bits is None:
        return LowRank(a, b, 0.5)
    near, far = (
        torch.from_numpy(decode_components(encode_components(part.numpy(), bits), *part.shape, bits))
        for part in (a, b.T.contiguous())
    )
    return LowRank(near, far.T.contiguous(), 0.5, bits)


def factors(shift: LowRank, module: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> Factors:
    return factors_of(module or nn.Linear(INPUTS, OUTPUTS), shift, dtype, torch.device("cpu"))


@settings(max_examples=60, deadline=None)
@given(st.lists(GROUP, min_size=1, max_size=8), st.booleans())
def test_every_row_gets_the_shift_of_its_own_task(groups, launches):
    x = torch.randn(sum(rows for rows, _, _ in groups), TOKENS, INPUTS)
    wanted, shifts, at = torch.zeros(*x.shape[:2], OUTPUTS), [], 0
    for seed, (rows, rank, bits) in enumerate(groups):
        if rank:
            entry, own = shift_of(rank, bits, seed), slice(at, at + rows)
            shifts.append((own, factors(entry)))
            wanted[own] = x[own] @ expanded(torch.zeros(OUTPUTS, INPUTS), entry).T
        at += rows
    found = torch.zeros_like(wanted)
    add_products(found, x, shifts, launches=launches)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [None, 4])
def test_an_embedding_looks_its_factors_up(bits):
    entry, table = shift_of(5, bits, 0, (OUTPUTS, INPUTS)), nn.Embedding(OUTPUTS, INPUTS)
    ids, found = torch.tensor([[3, 0, 19], [7, 7, 1]]), torch.zeros(2, 3, INPUTS)
    shifts: list[Shifted] = [(slice(1, 2), factors(entry, table))]
    add_products(found, ids, shifts)
    assert not found[0].any()
    torch.testing.assert_close(found[1], expanded(torch.zeros(OUTPUTS, INPUTS), entry)[ids[1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_factors_stay_a_byte_a_number(bits, dtype):
    entry = shift_of(6, bits, 0)
    found = factors(entry, dtype=dtype)
    assert found.down.dtype == found.up.dtype == torch.int8
    assert found.nbytes == factors_nbytes(entry, dtype) == 6 * (INPUTS + OUTPUTS) + 6 * dtype.itemsize


def test_half_precision_could_not_hold_sums_of_whole_numbers():
    entry = shift_of(6, 8, 0)
    found = factors(entry, dtype=torch.float16)
    assert found.down.dtype == torch.float16
    assert found.nbytes == factors_nbytes(entry, torch.float16)

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ken_core.blocks import blocks_of, is_finite, rows_of, widen, workers

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    elements=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_blocks_widened_and_put_together_are_the_tensor(shape, elements, dtype, seed):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ken_core.blocks.BLOCK_ELEMENTS", elements)
        parts = [widen(tensor, rows) for rows in blocks_of(tensor)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in parts} == {np.dtype("f8") if dtype == torch.float64 else np.dtype("f4")}
    assert np.array_equal(np.concatenate(parts), rows_of(tensor).to(wide).numpy())
    assert all(p.size <= max(elements, p.shape[1]) for p in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_single_bad_element_is_found_wherever_it_is(dtype, bad):
    for place in (0, 77, 299):
        tensor = torch.zeros(300, dtype=dtype)
        assert is_finite(tensor)
        tensor[place] = bad
        assert not is_finite(tensor.reshape(20, 15))


def test_the_largest_numbers_and_denormals_are_finite():
    for dtype in DTYPES:
        info = torch.finfo(dtype)
        assert is_finite(torch.tensor([info.max, -info.max, info.tiny, info.tiny * info.eps], dtype=dtype))
    assert is_finite(torch.tensor([2**31 - 1], dtype=torch.int32))


def test_results_come_in_order_and_only_a_few_items_are_begun_ahead():
    begun, consumed, most_ahead = [], 0, 0
    lock = threading.Lock()

    def work(item: int) -> int:
        with lock:
            begun.append(item)
        return item * item

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with workers() as in_order:
            for expected, result in enumerate(in_order(work, range(200))):
                assert result == expected * expected
                consumed += 1
                most_ahead = max(most_ahead, len(begun) - consumed)
    finally:
        torch.set_num_threads(before)
    assert sorted(begun) == list(range(200))
    assert most_ahead <= 6


def test_an_error_in_a_worker_reaches_the_caller():
    def work(item: int) -> None:
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"), workers() as in_order:
        list(in_order(work, range(5)))

"""The kernel for attention of single tokens, against the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ken_core.kernels import decode_attention
from ken_core.kernels.decode_attention import Place, attend, takes

BOTH_WAYS = pytest.mark.parametrize("alone", [0, 1 << 60], ids=["all threads", "one thread"])


@dataclass
class Texts:
    """Sequences in buffers with room behind their ends, and the token that each of them continues with."""

    lengths: list[int]
    heads: int = 3
    group: int = 3
    size: int = 64
    wide: int = 64
    room: int = 5

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(sum(self.lengths))

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(1, *shape, generator=draw)

        tokens = len(self.lengths)
        self.keys = [random(self.heads, length + self.room, self.size) for length in self.lengths]
        self.values = [random(self.heads, length + self.room, self.wide) for length in self.lengths]
        self.query = random(self.heads * self.group, tokens, self.size)
        self.key, self.value = random(self.heads, tokens, self.size), random(self.heads, tokens, self.wide)

    def places(self, first: int = 0) -> list[Place]:
        return [(i, self.keys[i], self.values[i], first, length) for i, length in enumerate(self.lengths)]

    def attended(self, places: list[Place], scaling: float | None = None) -> torch.Tensor:
        out = torch.full((1, len(self.lengths), self.heads * self.group, self.wide), 7.0)
        attend(out, self.query, self.key, self.value, places, scaling)
        return out

    def expected(self, number: int, first: int = 0, scaling: float | None = None) -> torch.Tensor:
        """Of one token: (query heads, size of a value), float64."""
        end = self.lengths[number]
        keys = torch.cat([self.keys[number][0, :, first:end], self.key[0, :, number, None]], dim=1).double()
        values = torch.cat([self.values[number][0, :, first:end], self.value[0, :, number, None]], dim=1).double()
        query = self.query[0, :, number].double().view(self.heads, self.group, self.size)
        scores = query @ keys.transpose(1, 2) * (self.size**-0.5 if scaling is None else scaling)
        return (scores.softmax(dim=-1) @ values).flatten(0, 1)


def furthest(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max())


@BOTH_WAYS
@pytest.mark.parametrize(("heads", "group"), [(1, 1), (3, 3), (4, 1), (2, 8)])
@pytest.mark.parametrize(("size", "wide"), [(16, 16), (64, 64), (80, 80), (96, 64), (3, 5)])
def test_each_token_attends_to_its_own_sequence(
    heads: int, group: int, size: int, wide: int, alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_attention, "_ALONE", alone)
    texts = Texts([0, 1, 2, 3, 4, 5, 63, 64, 65, 300], heads, group, size, wide)
    expected = [texts.expected(i) for i in range(len(texts.lengths))]
    found = texts.attended(texts.places())
    for number, one in enumerate(expected):
        assert furthest(found[0, number], one) < 1e-5, texts.lengths[number]


@BOTH_WAYS
def test_a_tokens_key_and_value_are_put_behind_those_before_and_nothing_else_changes(
    alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_attention, "_ALONE", alone)
    texts = Texts([7, 2], wide=32)
    before = [buffer.clone() for buffer in (*texts.keys, *texts.values)]
    texts.attended(texts.places())
    for number, end in enumerate(texts.lengths):
        for buffers, own, old in (
            (texts.keys, texts.key, before[number]),
            (texts.values, texts.value, before[2 + number]),
        ):
            assert torch.equal(buffers[number][0, :, end], own[0, :, number])
            old[0, :, end] = own[0, :, number]
            assert torch.equal(buffers[number], old)


def test_a_window_leaves_out_what_lies_before_it() -> None:
    texts = Texts([20, 30])
    expected = [texts.expected(i, first=13) for i in range(2)]
    for keys in texts.keys:
        keys[:, :, :13] = float("nan")
    found = texts.attended(texts.places(first=13))
    assert max(furthest(found[0, i], expected[i]) for i in range(2)) < 1e-5


def test_only_the_rows_of_the_tokens_in_question_are_written() -> None:
    texts = Texts([4, 5, 6])
    expected = texts.expected(1)
    found = texts.attended(texts.places()[1:2])
    assert furthest(found[0, 1], expected) < 1e-5
    assert (found[0, [0, 2]] == 7).all()


def test_products_are_scaled_as_the_layer_asks() -> None:
    texts = Texts([9])
    expected = texts.expected(0, scaling=0.5)
    assert furthest(texts.attended(texts.places(), scaling=0.5)[0, 0], expected) < 1e-5


def test_large_products_do_not_overflow() -> None:
    texts = Texts([9])
    texts.query *= 1e6
    expected = texts.expected(0)
    assert furthest(texts.attended(texts.places())[0, 0], expected) < 1e-3


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(number: float) -> None:
    texts = Texts([9, 9])
    texts.keys[0][0, 0, 3, 0] = number
    texts.query[0, :3, 0, 0] = 1.0  # the product is the number itself, not minus infinity
    found = texts.attended(texts.places())
    assert torch.isnan(texts.expected(0)[:3]).all(), "the head's"
    assert torch.isnan(found[0, 0, :3]).all()
    assert torch.isfinite(found[0, 0, 3:]).all()
    assert torch.isfinite(found[0, 1]).all()


def test_query_and_keys_may_lie_in_memory_in_any_order() -> None:
    texts = Texts([5, 8])
    expected = [texts.expected(i) for i in range(2)]
    texts.query, texts.key, texts.value = (
        one.transpose(1, 2).contiguous().transpose(1, 2) for one in (texts.query, texts.key, texts.value)
    )
    found = texts.attended(texts.places())
    assert max(furthest(found[0, i], expected[i]) for i in range(2)) < 1e-5


def test_heads_that_do_not_divide_the_query_heads_are_refused() -> None:
    texts = Texts([3])
    with pytest.raises(ValueError, match="found 8 query heads for 3 heads"):
        attend(torch.empty(1, 1, 8, 64), texts.query[:, :8], texts.key, texts.value, texts.places())


def test_the_two_ways_are_not_taken_for_one_another_by_numbas_cache() -> None:
    parallel = [
        kernel.targetoptions.get("parallel", False)
        for kernel in (decode_attention._one_thread, decode_attention._all_threads)
    ]
    assert decode_attention.is_usable()
    files = {
        kernel._cache._impl.filename_base for kernel in (decode_attention._one_thread, decode_attention._all_threads)
    }
    assert (parallel[0], len(files)) == (False, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_numbers_are_left_to_torch(dtype: torch.dtype) -> None:
    one = torch.zeros(1, 2, 3, 4)
    assert takes(one, one, one)
    assert not takes(one.to(dtype), one.to(dtype), one.to(dtype))
    assert not takes(one, one.to(dtype), one)


def test_what_needs_gradients_is_left_to_torch() -> None:
    one = torch.zeros(1, 2, 3, 4)
    assert not takes(one.clone().requires_grad_(), one, one)


def test_a_kernel_that_does_not_give_what_torch_gives_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decode_attention.is_usable.cache_clear()
    monkeypatch.setattr(decode_attention, "_all_threads", lambda out, *_: out.fill(np.nan))
    try:
        assert not decode_attention.is_usable()
    finally:
        decode_attention.is_usable.cache_clear()
    assert "does not give what torch gives" in caplog.text


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_torchs_default_numbers_change_nothing(default: torch.dtype) -> None:
    decode_attention.is_usable.cache_clear()
    torch.set_default_dtype(default)
    try:
        assert decode_attention.is_usable()
    finally:
        torch.set_default_dtype(torch.float32)


def test_torch_keeps_its_number_of_threads() -> None:
    decode_attention.is_usable.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert decode_attention.is_usable()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)

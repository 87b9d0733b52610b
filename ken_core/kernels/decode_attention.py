"""Attention of a decode step on a CPU, float32: single tokens, each to the keys and values of its own sequence.

torch attends to sequences of different lengths one by one, and each call wakes its threads: 240 calls in a step of 8
texts of SmolLM2. Here a layer's tokens are one call, which takes one thread unless the sequences are long. Whole steps
on 2 cores of an Intel Xeon, with torch's attention and with this one:

| texts x tokens before | threads sleep while they wait, as in ``ken serve`` | they spin |
|---|---|---|
| 1 x 64 | 54 and 52 ms | 29 and 29 ms |
| 8 x 64 | 97 and 76 ms | 58 and 54 ms |
| 16 x 64 | 142 and 96 ms | 78 and 69 ms |
| 8 x 500 | 117 and 88 ms | 73 and 63 ms |

The intrinsic stands in this file because numba's cache does not notice a change in another one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from torch.nn import functional

from ken_core.kernels.cpu import threading_is_safe

_log = logging.getLogger(__name__)

_ALONE = 2_000_000
"""Products of queries and keys up to which one thread is faster, since waking the others takes 0.1 to 0.3 ms."""

Place = tuple[int, torch.Tensor, torch.Tensor, int, int]
"""Of a token: its row, the buffers for its sequence's keys and for its values, each (1, heads, capacity, size) and in
one piece, the first place in them that it sees, and its own place."""


@cache
def is_usable() -> bool:
    """Whether the kernel gives what torch gives here; it is compiled for that."""
    threads = torch.get_num_threads()
    try:
        usable = _agrees(_one_thread) and _agrees(_all_threads)
    finally:
        torch.set_num_threads(threads)  # starting numba's OpenMP pool changes torch's number
    if not usable:
        _log.warning("the kernel for attention is not used, since it does not give what torch gives here")
    return usable


def takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether the kernel attends with these, each (1, heads, tokens, size): float32 on the CPU, and no gradients."""
    some = (query, key, value)
    fit = all(one.device.type == "cpu" and one.dtype is torch.float32 and not one.requires_grad for one in some)
    return fit and is_usable()


def attend(
    out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    places: Sequence[Place],
    scaling: float | None = None,
) -> None:
    """Put some tokens' keys and values into their buffers, and attend from each token to what it sees there.

    Args:
        out: float32, (1, tokens, query heads, size of a value); the rows of the tokens in question are written.
        query: float32, (1, query heads, tokens, size), on the CPU.
        key, value: of the tokens themselves, (1, heads, tokens, size). Each head is for as many query heads.
        places: of the tokens in question, at least one.
        scaling: of the products; by default one over the square root of the size.

    Raises:
        ValueError: the query heads are no multiple of the heads.
    """
    heads, size = query.shape[1], query.shape[3]
    if heads % key.shape[1]:
        raise ValueError(f"found {heads} query heads for {key.shape[1]} heads; expected a multiple")
    table = [(row, k.data_ptr(), v.data_ptr(), k.shape[2], first, own) for row, k, v, first, own in places]
    products = heads * size * sum(own + 1 - first for *_, first, own in table)
    kernel: Any = _one_thread if products <= _ALONE else _all_threads
    kernel(
        out[0].numpy(),
        *(tensor[0].transpose(0, 1).contiguous().numpy() for tensor in (query, key, value)),
        np.array(table, np.int64),
        np.float32(size**-0.5 if scaling is None else scaling),
    )


def _agrees(kernel: Any) -> bool:
    """Compare with torch on a token of a sequence whose 5 tokens before are there."""
    draw = np.random.default_rng(0)
    keys, values = (torch.from_numpy(draw.standard_normal((1, 2, 6, 16), np.float32)) for _ in range(2))
    query = torch.from_numpy(draw.standard_normal((1, 4, 1, 16), np.float32))
    expected = functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
    out = torch.empty(1, 4, 16, dtype=torch.float32)
    table = np.array([(0, keys.data_ptr(), values.data_ptr(), 6, 0, 5)], np.int64)
    own = (tensor[0, :, -1:].transpose(0, 1).contiguous().numpy() for tensor in (query, keys, values))
    kernel(out.numpy(), *own, table, np.float32(0.25))
    return bool((out[0] - expected[0, :, 0]).abs().max() < 1e-5)


def _float32_at(context, address):  # type: ignore[no-untyped-def]
    """The float32 at an address, as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _pointer_to(types.float32)(types.int64), generate


_pointer_to: Any = types.CPointer
_at: Any = intrinsic(_float32_at)


# Compiled code. Loops are unrolled by four, so that the sums stay in registers.


def _attend_by_one_thread(out, query, key, value, table, scaling):  # type: ignore[no-untyped-def]  # pragma: no cover
    for job in range(table.shape[0] * key.shape[1]):
        _attend_head(job, out, query, key, value, table, scaling)


def _attend_by_all_threads(out, query, key, value, table, scaling):  # type: ignore[no-untyped-def]  # pragma: no cover
    for job in numba.prange(table.shape[0] * key.shape[1]):
        _attend_head(job, out, query, key, value, table, scaling)


def _attended_head(job, out, query, key, value, table, scaling):  # type: ignore[no-untyped-def]  # pragma: no cover
    heads, size, wide = key.shape[1], key.shape[2], value.shape[2]
    head, group = job % heads, query.shape[1] // heads
    row, keys_at, values_at, capacity, first, own = table[job // heads]
    keys = carray(_at(keys_at + 4 * head * capacity * size), (capacity, size))
    values = carray(_at(values_at + 4 * head * capacity * wide), (capacity, wide))
    keys[own] = key[row, head]
    values[own] = value[row, head]
    shares = np.empty(own + 1 - first, np.float32)
    for asking in range(group * head, group * (head + 1)):
        _score(query[row, asking], keys[first : own + 1], scaling, shares)
        _average(out[row, asking], values[first : own + 1], shares)


def _scored(query, keys, scaling, shares):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Shares of the keys: the softmax of their products with the query, not yet divided by their sum."""
    count, size = keys.shape
    whole = count - count % 4
    for place in range(0, whole, 4):
        a = b = c = d = np.float32(0)
        for i in range(size):
            a += query[i] * keys[place, i]
            b += query[i] * keys[place + 1, i]
            c += query[i] * keys[place + 2, i]
            d += query[i] * keys[place + 3, i]
        shares[place], shares[place + 1], shares[place + 2], shares[place + 3] = a, b, c, d
    for place in range(whole, count):
        a = np.float32(0)
        for i in range(size):
            a += query[i] * keys[place, i]
        shares[place] = a
    most = np.float32(-np.inf)
    for place in range(count):
        most = max(most, scaling * shares[place])
    for place in range(count):
        shares[place] = np.exp(scaling * shares[place] - most)


def _averaged(out, values, shares):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The mean of values by their shares."""
    count, wide = values.shape
    whole = count - count % 4
    out[:] = 0
    total = np.float32(0)
    for place in range(count):
        total += shares[place]
    for place in range(0, whole, 4):
        a, b, c, d = shares[place], shares[place + 1], shares[place + 2], shares[place + 3]
        for i in range(wide):
            out[i] += (
                a * values[place, i] + b * values[place + 1, i] + c * values[place + 2, i] + d * values[place + 3, i]
            )
    for place in range(whole, count):
        for i in range(wide):
            out[i] += shares[place] * values[place, i]
    for i in range(wide):
        out[i] /= total


_SUMS = {"reassoc", "contract", "nsz"}
"""What the compiler may do to sums; numbers that are not finite stay so."""
_score = numba.njit(nogil=True, fastmath=_SUMS, inline="always")(_scored)
_average = numba.njit(nogil=True, fastmath=_SUMS, inline="always")(_averaged)
# One function each: numba's cache takes one that is compiled with other options for the same.
_attend_head = numba.njit(nogil=True, fastmath=_SUMS)(_attended_head)
_one_thread = numba.njit(nogil=True, cache=True)(_attend_by_one_thread)
_all_threads = numba.njit(nogil=True, cache=True, parallel=threading_is_safe())(_attend_by_all_threads)

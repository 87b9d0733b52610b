"""The Triton kernels in Triton's interpreter: in a process of its own, since triton reads the switch when imported."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import torch

from ken_core.bits import Bits, as_bits, from_bits
from ken_core.kernels import Packed


def exchange(weights: torch.Tensor, packed: Packed) -> None:
    """`ken_core.kernels.cuda.exchange` on CPU tensors."""
    words, chunks = packed.words.numpy(), packed.chunks.numpy()
    task = _process().submit(_exchange, as_bits(weights), words, as_bits(packed.values), chunks, weights.dtype)
    for tensor, bits in zip((weights, packed.values), task.result(), strict=True):
        tensor.copy_(from_bits(bits, tensor.dtype))


@cache
def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _interpret)


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _exchange(weights: Bits, words: Bits, values: Bits, chunks: Bits, dtype: torch.dtype) -> tuple[Bits, Bits]:
    from ken_core.kernels import cuda

    packed = Packed(torch.from_numpy(words), from_bits(values, dtype), torch.from_numpy(chunks))
    cuda.exchange(from_bits(weights, dtype), packed)
    return weights, values

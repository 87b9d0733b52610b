"""The exchange on CPU: numba, one pass over the mask words, parallel over chunks.

Chunks touch disjoint weights and values, so they need no order. Run it on one thread at a time (the engine's):
numba's OpenMP layer is not meant to be entered from several.
"""

from __future__ import annotations

import os
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ken_core.kernels.packed import Packed

_INTEGER = {2: np.uint16, 4: np.uint32, 8: np.uint64}
_SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}

Words = npt.NDArray[np.uint64]


def exchange(weights: torch.Tensor, packed: Packed) -> None:
    """Trade `packed.values` with the elements of the flat CPU tensor `weights` at the mask's positions."""
    _kernel(
        _as_integers(weights),
        packed.words.numpy().view(np.uint64),
        _as_integers(packed.values),
        packed.chunks.numpy(),
    )


def warm(dtype: torch.dtype) -> None:
    """Compile (or load from numba's cache) the kernel for `dtype`, so that no request pays for it."""
    from ken_core.kernels.packed import Segment, pack

    segment = Segment(0, np.ones(1, np.uint8), np.zeros(1, _INTEGER[dtype.itemsize]))
    packed = pack([segment], dtype, dtype, torch.device("cpu"))
    threads = torch.get_num_threads()
    exchange(torch.zeros(1, dtype=dtype), packed)
    torch.set_num_threads(threads)  # starting numba's OpenMP pool changes torch's


def threading_is_safe() -> bool:
    """Whether numba has a threading layer that coexists with torch's threads (OpenMP or TBB)."""
    if os.environ.get("NUMBA_THREADING_LAYER", "default") == "workqueue":
        return False
    for layer in ("omppool", "tbbpool"):
        try:
            __import__(f"numba.np.ufunc.{layer}")
            return True
        except ImportError:
            continue
    return False


def _as_integers(tensor: torch.Tensor) -> npt.NDArray[np.unsignedinteger]:
    signed: npt.NDArray[np.signedinteger] = tensor.detach().view(_SIGNED[tensor.element_size()]).numpy()
    return signed.view(_INTEGER[tensor.element_size()])


def _count_trailing_zeros(context: Any, word: Any) -> Any:
    """Index of the lowest set bit: LLVM's cttz, one instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


_trailing_zeros: Any = intrinsic(_count_trailing_zeros)


def _exchange_chunks(weights, words, values, chunks):  # type: ignore[no-untyped-def]
    for c in numba.prange(chunks.shape[0]):
        position, value = chunks[c, 0], chunks[c, 3]
        for w in range(chunks[c, 1], chunks[c, 1] + chunks[c, 2]):
            word = words[w]
            while word != np.uint64(0):
                i = position + np.int64(_trailing_zeros(word))
                held = weights[i]
                weights[i] = values[value]
                values[value] = held
                value += 1
                word &= word - np.uint64(1)
            position += 64


_kernel = numba.njit(parallel=threading_is_safe(), nogil=True, cache=True)(_exchange_chunks)

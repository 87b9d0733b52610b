"""The packed form of a delta on the device: 64-bit mask words, values, and a table that splits the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ken_core.bits import Bits, as_bits, from_bits

WORD_BITS = 64
_WORD_BYTES = 8
_CHUNK_BYTES = 4 * 8
_CHUNK_WORDS = {"cpu": 1024, "cuda": 64}
"""Mask words per chunk: enough to be worth one iteration of numba's loop, few enough to fill a GPU with programs."""


@dataclass(frozen=True)
class Segment:
    """The kept elements of one tensor.

    start: the tensor's first element in the arena, a multiple of 64.
    positions: the packed mask (`ken_core.bits.pack_mask`).
    values: the kept elements' bits.
    """

    start: int
    positions: npt.NDArray[np.uint8]
    values: Bits


@dataclass(frozen=True)
class Packed:
    """Masks and values of all tensors of one arena that a delta changes.

    words: int64; bit i of a tensor's word w stands for the tensor's element 64 * w + i.
    values: shape (count,), the arena's dtype. After an exchange, they are the values that the arena held.
    chunks: int64, shape (chunks, 4): first element in the arena, first word, number of words, first value. The most
        words per chunk depend on the device.
    """

    words: torch.Tensor
    values: torch.Tensor
    chunks: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.words.nbytes + self.values.nbytes + self.chunks.nbytes


def pack(segments: Sequence[Segment], dtype: torch.dtype, device: torch.device) -> Packed:
    """Pack segments. Their values have the arena's `dtype` already (`cast_values`)."""
    words = [_words(s.positions) for s in segments]
    chunks = []
    chunk_words = _chunk_words(device)
    word = value = 0
    for segment, mask in zip(segments, words, strict=True):
        population = np.bitwise_count(mask.view(np.uint64))
        for first in range(0, mask.size, chunk_words):
            part = population[first : first + chunk_words]
            chunks.append((segment.start + first * WORD_BITS, word + first, part.size, value))
            value += int(part.sum())
        word += mask.size
    bits = np.concatenate([s.values for s in segments])
    return Packed(
        words=torch.from_numpy(np.concatenate(words)).to(device),
        values=from_bits(bits, dtype).to(device),
        chunks=torch.tensor(chunks, dtype=torch.int64).view(-1, 4).to(device),
    )


def cast_values(values: Bits, stored: torch.dtype, dtype: torch.dtype) -> Bits:
    """The bits of values of the `stored` dtype, cast once to the arena's `dtype`."""
    return values if stored == dtype else as_bits(from_bits(values, stored).to(dtype))


def packed_nbytes(numel: int, kept: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes that `pack` takes for one tensor.

    Args:
        numel: elements of the tensor.
        kept: elements of it that are kept.
        dtype: the arena's.
    """
    words = -(-numel // WORD_BITS)
    chunks = -(-words // _chunk_words(device))
    return words * _WORD_BYTES + kept * dtype.itemsize + chunks * _CHUNK_BYTES


def _chunk_words(device: torch.device) -> int:
    return _CHUNK_WORDS.get(device.type, _CHUNK_WORDS["cpu"])


def _words(positions: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    padded = np.zeros(-(-positions.size // 8) * 8, np.uint8)
    padded[: positions.size] = positions
    return padded.view("<i8").astype(np.int64, copy=False)

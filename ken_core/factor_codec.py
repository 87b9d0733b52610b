"""How the factors of a low-rank shift are quantised: each component by a scale of its own, so that small ones last.

A stream has one float32 scale for each component, then the codes of all components, one after the other, compressed. A
code is a whole number of scales, shifted to be positive.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ken_core.compression import Bytes, compress, decompress
from ken_core.errors import DeltaFormatError
from ken_core.quantise import pack_codes, unpack_codes

Singles = npt.NDArray[np.float32]


def encode_components(components: Singles, bits: int) -> Bytes:
    """Encode components of shape (rank, n) with 4 or 8 bits a number. The largest number of each is kept exactly."""
    codes, scales = codes_of(torch.from_numpy(components), bits)
    shifted = (codes.numpy() + np.int16(_top(bits))).astype(np.uint8)
    return np.concatenate([scales.numpy().view(np.uint8), compress(pack_codes(shifted.reshape(-1), bits))])


def codes_of(components: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest codes and the scales of components: of decoded ones, those that they were decoded from.

    Args:
        components: shape (rank, n), float32.

    Returns:
        Codes, int8, of the same shape, and scales, float32, shape (rank,).
    """
    top = _top(bits)
    scales = components.abs().amax(dim=1) / top if components.numel() else components.new_zeros(components.shape[0])
    steps = torch.where(scales > 0, scales, 1.0)
    return (components / steps[:, None]).round_().clamp_(-top, top).to(torch.int8), scales


def rounded_components(components: Singles, bits: int) -> Singles:
    """What `decode_components` gives for what `encode_components` makes of components; shape (rank, n)."""
    codes, scales = codes_of(torch.from_numpy(components), bits)
    rounded: Singles = (codes * scales[:, None]).numpy()
    return rounded


def decode_components(data: Bytes, rank: int, n: int, bits: int) -> Singles:
    """Decode what `encode_components` made; shape (rank, n).

    Raises:
        DeltaFormatError: `data` does not hold so many components of so many numbers, or a scale is no size.
    """
    head = rank * np.dtype(np.float32).itemsize
    if data.size < head:
        raise DeltaFormatError(f"{rank} components need {head} bytes of scales, the stream has {data.size}")
    scales = np.ascontiguousarray(data[:head]).view(np.float32)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise DeltaFormatError("a component's scale is negative, NaN or infinite")
    packed = decompress(data[head:], -(-rank * n * bits // 8))
    codes = unpack_codes(packed, rank * n, bits).reshape(rank, n)
    numbers: Singles = (codes.astype(np.float32) - np.float32(_top(bits))) * scales[:, None]
    return numbers


def _top(bits: int) -> int:
    return int((1 << (bits - 1)) - 1)

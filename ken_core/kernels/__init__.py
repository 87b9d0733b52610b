"""Exchanging a packed delta with the resident weights, by device."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from ken_core.kernels.packed import Packed, Segment, pack

Exchange = Callable[[torch.Tensor, Packed], None]

__all__ = ["Exchange", "Packed", "Segment", "exchange_for", "pack"]


def exchange_for(device: torch.device, dtype: torch.dtype) -> Exchange:
    """The fastest exchange for a device, compiled before it is returned."""
    if device.type == "cpu" and dtype.itemsize in (2, 4, 8):
        from ken_core.kernels import cpu

        cpu.warm(dtype)
        return cpu.exchange
    if device.type == "cuda" and dtype.itemsize in (2, 4, 8) and find_spec("triton"):
        from ken_core.kernels import cuda

        cuda.warm(device, dtype)
        return cuda.exchange
    from ken_core.kernels import reference

    return reference.exchange

"""The exchange of a packed delta with the resident weights, for each device."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch

from ken_core.kernels.correction import Correction
from ken_core.kernels.packed import Packed, Segment, cast_values, pack, packed_nbytes

_log = logging.getLogger(__name__)

Exchange = Callable[[torch.Tensor, Packed], None]
"""Trades values between the flat weights of an arena and a packed delta for this arena."""
Switch = Callable[[torch.Tensor, Packed, Packed], None]
"""Takes the flat weights, the delta that is in them, and the delta that shall replace it."""

__all__ = [
    "Correction",
    "Exchange",
    "Packed",
    "Segment",
    "Switch",
    "cast_values",
    "correction_for",
    "exchange_for",
    "pack",
    "packed_nbytes",
    "switch_for",
]


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


def switch_for(device: torch.device, dtype: torch.dtype) -> Switch:
    """The fastest way from one delta to another on a device, compiled before it is returned.

    It leaves the same bits as exchanging the first delta, then the second one.
    """
    exchange = exchange_for(device, dtype)
    if device.type == "cpu" and dtype.itemsize in (2, 4, 8):
        from ken_core.kernels import cpu

        return cpu.switch

    def one_after_the_other(weights: torch.Tensor, leaving: Packed, entering: Packed) -> None:
        exchange(weights, leaving)
        exchange(weights, entering)

    return one_after_the_other


def correction_for(device: torch.device, dtype: torch.dtype) -> Correction:
    """The fastest corrections for an arena's device and dtype, compiled before they are returned.

    Fast ones that do not give the reference's results on this device are left alone, with a warning.
    """
    from ken_core.kernels import correction_reference
    from ken_core.kernels.correction_check import agrees

    reference = correction_reference.CORRECTION
    try:
        fast = _fast_correction(device, dtype)
        if fast is None or agrees(fast, reference, device, dtype):
            return fast or reference
        why = "they do not give the reference's results"
    except Exception as error:
        why = str(error)
    _log.warning("the fast corrections for %s on %s are not used: %s", dtype, device, why)
    return reference


def _fast_correction(device: torch.device, dtype: torch.dtype) -> Correction | None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    if device.type == "cpu":
        from ken_core.kernels import correction_cpu

        correction_cpu.warm(dtype)
        return correction_cpu.CORRECTION
    if device.type == "cuda" and find_spec("triton"):
        from ken_core.kernels import correction_cuda

        correction_cuda.warm(device, dtype)
        return correction_cuda.CORRECTION
    return None

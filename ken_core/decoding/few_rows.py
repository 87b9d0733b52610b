"""Linear layers for the few rows of a decode step, on a CPU in float32.

On processors that are not Intel's, MKL takes the product of a few rows with a weight matrix for one of large matrices,
and works through the weights several times slower than memory gives them. Asked for the transposed product it does not.
SmolLM2's layers, 2 cores of an AMD EPYC, 2 / 4 / 8 / 16 rows: 21 / 19 / 17 / 21 ms as `torch` asks, 5 / 8 / 13 / 18 ms
so. One row is left to torch: in whole steps two threads gain nothing there, and lose where another process wants a
core. Where the processor has AVX-512, a kernel of our own takes 2 to 12 rows (`ken_core.kernels.few_tokens`). Results
differ in the order of sums alone.

On Intel's processors MKL has no such fault, and only the kernel gains something, on 2 to 16 rows, where threads sleep
while they wait, as those of ``ken serve``. Whole steps of 1 / 2 / 4 / 8 / 12 / 16 / 24 texts on 2 cores of a Xeon with
AMX: 51 / 55 / 67 / 77 / 88 / 92 / 105 ms with torch, 49 / 50 / 56 / 65 / 75 / 83 / 114 ms with the kernel. While
threads spin, 29 / 31 / 44 / 52 / 60 / 66 / 77 ms with torch, and 39 / 39 / 45 / 51 / 61 / 68 / 97 ms with the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from ken_core.kernels import few_tokens

_ALWAYS, _MOST = 4, 256
"""Rows up to which MKL is faster so on one thread, and on several."""
_OF_KERNEL, _OF_KERNEL_ON_INTEL = range(2, few_tokens.MOST + 1), range(2, 17)
"""Rows for which the kernel is faster."""


@contextmanager
def few_rows(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within it, linear layers among the modules compute few rows faster.

    Nobody else may run the modules meanwhile, and what else was put in front of a layer is left out.
    """
    changed = [(m, vars(m).get("forward")) for m in modules if type(m) is nn.Linear and _gains(m.weight)]
    for module, _ in changed:
        vars(module)["forward"] = partial(linear, module)
    try:
        yield
    finally:
        for module, before in changed:
            if before is None:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = before


@cache
def mkl_is_fast() -> bool:
    """Whether MKL reads weights as fast for few rows as for many: on Intel's processors."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False


def _gains(weight: torch.Tensor) -> bool:
    plain = weight.device.type == "cpu" and weight.dtype is torch.float32
    return plain and (_has_kernel(weight) or not mkl_is_fast())


def _has_kernel(weight: torch.Tensor) -> bool:
    return few_tokens.takes(weight) and few_tokens.is_usable()


def linear(module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """What a linear layer on a CPU in float32 computes of few rows, (..., features)."""
    return product(inputs, module.weight, module.bias)


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x W^T + b`` of few rows on a CPU in float32.

    Args:
        inputs: (..., features).
        weight: (outputs, features).
    """
    rows = inputs.numel() // inputs.shape[-1]
    most = _ALWAYS if torch.get_num_threads() == 1 else _MOST
    flat = inputs.reshape(rows, inputs.shape[-1])
    if rows == 1 or inputs.dtype is not torch.float32:
        return functional.linear(inputs, weight, bias)
    if rows in (_OF_KERNEL_ON_INTEL if mkl_is_fast() else _OF_KERNEL) and _has_kernel(weight):
        made = few_tokens.product(flat, weight, few_tokens.plain_tiles(rows))
    elif rows <= most and not mkl_is_fast():
        made = torch.mm(weight, flat.contiguous().t()).t().contiguous()
    else:
        return functional.linear(inputs, weight, bias)
    if bias is not None:
        made += bias
    return made.view(*inputs.shape[:-1], len(weight))

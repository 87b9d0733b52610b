"""The fingerprint of a base: it identifies the weights that a delta was made against and may be injected into."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ken_core.bits import as_bits


@dataclass(frozen=True)
class TensorId:
    """The identity of one tensor: dtype name, shape, sha256 of its bytes."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class Fingerprint:
    """The identity of a base's weights, as one digest and tensor by tensor.

    `digest` is the sha256 over the sorted (name, dtype, shape, sha256) of every backbone tensor in the files. Newly
    initialised tensors do not count, nor do buffers that are not saved or hold integers: ``AutoModel`` and
    ``AutoModelForX`` of a single checkpoint differ in these.
    """

    digest: str
    tensors: Mapping[str, TensorId]


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> Fingerprint:
    """The fingerprint of CPU tensors, given by backbone-relative name."""
    table = {name: identify(tensors[name]) for name in sorted(tensors)}
    whole = hashlib.sha256()
    for name, tensor in table.items():
        whole.update(f"{name}\0{tensor.dtype}\0{tensor.shape}\0{tensor.sha256}\n".encode())
    return Fingerprint(whole.hexdigest(), table)


def identify(tensor: torch.Tensor) -> TensorId:
    return TensorId(dtype_name(tensor.dtype), tuple(tensor.shape), hashlib.sha256(as_bits(tensor).data).hexdigest())


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` -> ``"float32"``."""
    return str(dtype).removeprefix("torch.")

"""Rendezvous hashing (Thaler and Ravishankar, 1998): an order of replicas for a key, in which few keys change their
first replica when replicas come and go. The same in every process and version."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def order(key: str, replicas: Iterable[str]) -> list[str]:
    """The replicas by their weight for this key, the highest first."""
    names = sorted(replicas)
    return [names[i] for i in Weights(names).order(key)]


class Weights:
    """Orders of the same replicas for many keys.

    Args:
        replicas: names; orders are positions among them.
    """

    def __init__(self, replicas: Iterable[str]) -> None:
        self._hashes: NDArray[np.uint64] = np.array([_hash(name) for name in replicas], np.uint64)

    def order(self, key: str) -> list[int]:
        """Positions of the replicas by their weight for a key, the highest first."""
        order: list[int] = np.argsort(~_mixed(self._hashes ^ np.uint64(_hash(key))), kind="stable").tolist()
        return order


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of a value changes about half of the bits of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""Scores: every element of a tensor gets an integer key in the order of its score; the largest keys are kept."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from ken_core.density import density

Rows = npt.NDArray[np.floating]
Keys = npt.NDArray[np.uint64]

KEY_BITS = 64
_PHILOX_WORDS = 4


def magnitude(base: Rows, tuned: Rows) -> Keys:
    """The larger the shift, the larger the key. Shape (r, n)."""
    shift = np.subtract(tuned, base, dtype=np.float64)
    return _float_keys(np.abs(shift, out=shift))


def likely_value(base: Rows, tuned: Rows) -> Keys:
    """The denser the fine-tuned value under its row's KDE, the larger the key: the paper's Algorithm 1."""
    return _float_keys(density(tuned))


def unlikely_shift(base: Rows, tuned: Rows) -> Keys:
    """The less dense the shift under its row's KDE, the larger the key."""
    return ~_float_keys(density(np.subtract(tuned, base, dtype=np.float64)))


def random(name: str, seed: int, start: int, shape: tuple[int, int]) -> Keys:
    """Uniform keys for the elements from `start` on, from a random stream of the tensor's own.

    The stream can be read from any place, so a key depends neither on blocks nor on threads.
    """
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    stream = np.random.Philox(entropy)
    stream.advance(start // _PHILOX_WORDS)
    skipped = start % _PHILOX_WORDS
    return stream.random_raw(skipped + shape[0] * shape[1])[skipped:].reshape(shape)


def _float_keys(scores: npt.NDArray[np.float64]) -> Keys:
    """Scores as keys: the bits of non-negative floats have the order of the floats."""
    return scores.view(np.uint64)

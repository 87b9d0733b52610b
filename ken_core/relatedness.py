"""Relatedness: can a model be a fine-tune of a base at all, judging by the direction of its weight matrices?

Fine-tuning turns matrices only a little, however long it lasts: over the 40 matrices of MiniLM-L6 the median cosine to
the base was 1.000 at the usual learning rate (1e-4), 0.994 at 10 times that, 0.957 at 50 times and 0.622 at 200 times.
Matrices of models that are trained or initialised separately point in any direction: the median was 0.001 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import median

import numpy as np
import torch

from ken_core.blocks import blocks_of, widen

LEAST_MEDIAN = 0.3
_FEWEST = 4
"""The least number of matrices to judge by; among fewer, a new embedding alone would weigh too much."""


def cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The cosine between two floating CPU tensors of one shape, seen as vectors; 0 where one of them is all zeros."""
    product = our_square = their_square = 0.0
    for block in blocks_of(ours):
        a, b = widen(ours, block), widen(theirs, block)
        product += float(np.vdot(a, b))
        our_square += float(np.vdot(a, a))
        their_square += float(np.vdot(b, b))
    return product / sqrt(our_square * their_square) if our_square and their_square else 0.0


def is_related(cosines: Sequence[float]) -> bool:
    """Whether matrices point where the base's do.

    Args:
        cosines: one for each matrix that both models have in the same shape; 1.0 for matrices that are equal.
    """
    return len(cosines) < _FEWEST or median(cosines) >= LEAST_MEDIAN

"""Method `ken-grid`: selection as the KEN authors' released code does it, with every quirk that decides what is kept.

Their code does not rank a row's elements but `k` points, evenly spaced between the row's smallest and largest
value: points in the order of their density rounded to an integer each take the nearest element that is still
free. Elements equal to a taken one are kept too, and a kept value of exactly 0.0 is lost, because zero means "pruned"
in their code. So the number of kept elements is only about `k`.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from ken_core.bits import Mask
from ken_core.density import bandwidths


def keep_nearest_to_grid(rows: npt.NDArray[np.floating], k: int) -> Mask:
    """Elements that keep their fine-tuned value under method `ken-grid`.

    Args:
        rows: shape (r, n), float32 or float64; all arithmetic except that of the densities is in this dtype.
        k: number of grid points of each row.

    Returns:
        bool, shape (r, n). For `k` > 0 all elements of a constant row are kept, unless the row is zero.
    """
    kept = np.zeros(rows.shape, np.bool_)
    if k == 0:
        return kept
    for row, h, out in zip(rows, bandwidths(rows), kept, strict=True):
        if h == 0:
            out[:] = True
            continue
        points = np.linspace(row.min(), row.max(), k, dtype=row.dtype)
        rounded = np.rint(_densities(points.astype(np.float64), row.astype(np.float64), h))
        most_likely_first = np.argsort(-rounded, kind="stable")
        order = np.argsort(row, kind="stable")
        _take_nearest(points[most_likely_first], row[order], order, out)
    kept &= rows != 0
    return kept


@numba.njit(cache=True, nogil=True)
def _densities(points, row, h):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty(points.size)
    scale = 1.0 / (row.size * h * math.sqrt(2.0 * math.pi))
    for j in range(points.size):
        total = 0.0
        for i in range(row.size):
            z = (points[j] - row[i]) / h
            total += math.exp(-0.5 * z * z)
        out[j] = total * scale
    return out


@numba.njit(cache=True, nogil=True)
def _take_nearest(points, values, order, kept):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Each point takes the nearest free element; of equally near elements, the first in the row.

    `values` is the row in sorted (stable) order, and `order` holds each value's place in the row. Equal values form a
    group whose elements are taken from the left, so `group_next` alone tells which elements of a group are taken.
    """
    n = values.size
    starts = np.empty(n + 1, np.int64)
    groups = 0
    for i in range(n):
        if i == 0 or values[i] != values[i - 1]:
            starts[groups] = i
            groups += 1
    starts[groups] = n
    group_next = starts[:groups].copy()
    # The nearest group at or before (after) that has a free element, with paths shortened as they are walked.
    before, after = np.arange(groups + 1), np.arange(groups + 1)
    heads = values[starts[:groups]]
    for p in points:
        place = np.searchsorted(heads, p)
        right = _root(after, place)
        left = _root(before, place) - 1  # shifted by one: 0 stands for "none"
        if left < 0 and right == groups:
            return
        best, best_distance = -1, np.inf
        while right < groups and abs(heads[right] - p) <= best_distance:
            distance = abs(heads[right] - p)
            if best < 0 or distance < best_distance or order[group_next[right]] < order[group_next[best]]:
                best, best_distance = right, distance
            right = _root(after, right + 1)
        while left >= 0 and abs(heads[left] - p) <= best_distance:
            distance = abs(heads[left] - p)
            if best < 0 or distance < best_distance or order[group_next[left]] < order[group_next[best]]:
                best, best_distance = left, distance
            left = _root(before, left) - 1
        if group_next[best] == starts[best]:
            for i in range(starts[best], starts[best + 1]):
                kept[order[i]] = True
        group_next[best] += 1
        if group_next[best] == starts[best + 1]:
            after[best] = best + 1
            before[best + 1] = best


@numba.njit(cache=True, nogil=True)
def _root(links, i):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    root = i
    while links[root] != root:
        root = links[root]
    while links[i] != root:
        following = links[i]
        links[i] = root
        i = following
    return root

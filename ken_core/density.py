"""Density estimates: the Gaussian kernel density of every element of every row of a matrix.

KEN (Mastromattei and Zanzotto, ACL 2024, arXiv 2402.03142) estimates, for each row of a weight matrix,
the density of the row's own values with bandwidth ``h = 1.06 * std * n**(-1/5)`` (Scott's rule as the
paper writes it; population standard deviation).

Two modes:

- exact: the sum over all pairs, quadratic in the row's length, for verification;
- fast: linear binning on a grid whose step is a fixed fraction of ``h``, one convolution with the sampled
  kernel for all rows of one grid size, linear interpolation back. A step of h / 20 keeps the error below
  1e-3 of the row's largest density: an isolated point, the worst case, loses about (step / h)**2 / 8 in
  the binning and as much again in the interpolation, 6e-4 in all.

Rows are first scaled by a power of two, so that the squares of their elements neither overflow nor vanish.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]

_BINS_PER_BANDWIDTH = 20
_CUTOFF_BANDWIDTHS = 6.0


def bandwidths(rows: npt.NDArray[np.floating]) -> Rows:
    """Scott's bandwidth of each row, ``1.06 * std * n**-0.2``, float64, shape (rows,); 0 for a constant row."""
    scaled, exponents = _scaled(rows)
    h: Rows = np.ldexp(_bandwidths(scaled, scaled.min(axis=1), scaled.max(axis=1)), exponents)
    return h


def density(rows: npt.NDArray[np.floating], *, exact: bool = False) -> Rows:
    """Density of each element under its own row's KDE.

    Args:
        rows: shape (r, n), any float dtype, finite.
        exact: sum over all pairs instead of the binned approximation.

    Returns:
        float64, shape (r, n). The density of a constant row (so of every row with n = 1) is a point mass; all its
        elements get the value 1.0. Densities past float64's range (rows of denormals) become the largest float64.
    """
    scaled, exponents = _scaled(rows)
    low, high = scaled.min(axis=1), scaled.max(axis=1)
    h = _bandwidths(scaled, low, high)
    estimate = _exact if exact else _binned
    varied = np.flatnonzero(h > 0)
    if varied.size == h.size:
        result = estimate(scaled, h, low, high)
    else:
        result = np.ones_like(scaled)
        result[varied] = estimate(scaled[varied], h[varied], low[varied], high[varied])
        exponents = np.where(h > 0, exponents, 0)
    with np.errstate(over="ignore"):
        np.ldexp(result, -exponents[:, None], out=result)
    return np.minimum(result, np.finfo(np.float64).max, out=result)


def _scaled(rows: npt.NDArray[np.floating]) -> tuple[Rows, npt.NDArray[np.int32]]:
    """Rows divided by 2**exponent, the power of two above a row's largest magnitude; and the exponents, shape (r,)."""
    wide = rows.astype(np.float64)
    _, exponents = np.frexp(np.maximum(wide.max(axis=1), -wide.min(axis=1)))
    return np.ldexp(wide, -exponents[:, None], out=wide), exponents


def _bandwidths(rows: Rows, low: Rows, high: Rows) -> Rows:
    h: Rows = 1.06 * rows.std(axis=1) * rows.shape[1] ** -0.2
    h[low == high] = 0.0
    return h


def _exact(rows: Rows, h: Rows, low: Rows, high: Rows) -> Rows:
    out = np.empty_like(rows)
    for i, row in enumerate(rows):
        z = (row[:, None] - row[None, :]) / h[i]
        out[i] = np.exp(-0.5 * z * z).mean(axis=1) / (h[i] * math.sqrt(2 * math.pi))
    return out


def _binned(rows: Rows, h: Rows, low: Rows, high: Rows) -> Rows:
    """Group rows by grid size, so that each group is one batch of FFTs."""
    pad = int(_CUTOFF_BANDWIDTHS * _BINS_PER_BANDWIDTH)
    step = h / _BINS_PER_BANDWIDTH
    sizes = _grid_sizes(np.ceil((high - low) / step).astype(np.int64) + 2 + pad)
    out = np.empty_like(rows)
    for size in np.unique(sizes).tolist():
        members = np.flatnonzero(sizes == size)
        grid = np.zeros((members.size, size))
        _bin_linear(rows, members, low, step, grid)
        smooth = np.fft.irfft(np.fft.rfft(grid) * _kernel_transfer(size, pad), n=size)
        _interpolate(rows, members, low, step, smooth, 1.0 / (rows.shape[1] * h), out)
    return out


def _grid_sizes(cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each count the smallest of 4, 5, 6 and 7 times a power of two that is no smaller.

    Grids of these sizes are quick to transform, and rows fall into few groups.
    """
    quarter = np.exp2(np.ceil(np.log2(cells)) - 3).astype(np.int64)
    sizes: npt.NDArray[np.int64] = np.maximum(-(-cells // quarter), 4) * quarter
    return sizes


def _kernel_transfer(size: int, pad: int) -> Rows:
    """Fourier transform of the standard normal sampled at the grid's step, wrapped, cut at six bandwidths."""
    offsets = np.arange(-pad, pad + 1)
    kernel = np.zeros(size)
    z = offsets / _BINS_PER_BANDWIDTH
    np.add.at(kernel, offsets % size, np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
    return np.fft.rfft(kernel).real


@numba.njit(cache=True, nogil=True)
def _bin_linear(rows, members, low, step, grid):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    for m in range(members.size):
        r = members[m]
        inverse = 1.0 / step[r]
        for i in range(rows.shape[1]):
            position = (rows[r, i] - low[r]) * inverse
            cell = int(position)
            share = position - cell
            grid[m, cell] += 1.0 - share
            grid[m, cell + 1] += share


@numba.njit(cache=True, nogil=True)
def _interpolate(rows, members, low, step, grid, scale, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for m in range(members.size):
        r = members[m]
        inverse = 1.0 / step[r]
        for i in range(rows.shape[1]):
            position = (rows[r, i] - low[r]) * inverse
            cell = int(position)
            share = position - cell
            value = grid[m, cell] * (1.0 - share) + grid[m, cell + 1] * share
            out[r, i] = max(value, 0.0) * scale[r]

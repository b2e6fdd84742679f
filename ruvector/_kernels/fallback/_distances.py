"""Squared Euclidean distances between rows, by products where these lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["row_dots", "squared_distances"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

_TILE_ELEMENTS = 1 << 17


def squared_distances(
    a: _Float64, b: _Float64, cancelled: float, exact_a: _Array, exact_b: _Array
) -> _Float64:
    """Form ``|a|^2 + |b|^2 - 2 a.b`` for every pair of rows, and redo close pairs.

    Parameters
    ----------
    a, b : ndarray of float64, shape (m, d) and (n, d)
        May be moved by a common shift, which changes no difference.
    cancelled : float
        The rounding of a result, relative to the squared norms that it is made of, is about
        1e-15; pairs closer than this fraction of them are summed from differences.
    exact_a, exact_b : ndarray
        The same rows as they were given, for those differences: what a shift that is far
        from a pair costs does not reach them.

    Returns
    -------
    ndarray of float64, shape (m, n)
    """
    scale = row_dots(a, a)[:, np.newaxis] + row_dots(b, b)
    squares: _Float64 = a @ b.T
    squares *= -2
    squares += scale
    scale *= cancelled
    # Not squares <= scale, which is false of NaN.
    close = np.divmod(np.flatnonzero(~(squares > scale)), squares.shape[1])
    step = max(1, _TILE_ELEMENTS // max(1, a.shape[1]))
    for part in _parts(len(close[0]), step):
        i, j = close[0][part], close[1][part]
        difference = exact_a[i].astype(np.float64) - exact_b[j]
        squares[i, j] = row_dots(difference, difference)
    return squares


def row_dots(a: _Array, b: _Array) -> _Float64:
    """Return the dot product of every two rows, summed in float64."""
    dots: _Float64 = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    return dots


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, count)) for i in range(0, count, step))

"""Row-wise vector utilities on canonical arrays: the NumPy twin of ``_kernels.utils``.

Every array is C-contiguous, aligned and native-endian, float32 or float64, and all arrays
of one call have the same dtype. ``x`` is ``(rows, d)`` and may be read-only; ``out`` is
written whole. Where a function says that it works in place, ``out`` may be ``x`` itself;
otherwise, and for any partial overlap, it may not share memory with an input. ``rows``
and ``d`` may be zero.

Sums are accumulated in float64, so float32 input neither overflows nor loses small
differences; float64 rows whose sum of squares would leave the range of float64 are divided
by their largest magnitude first. Nothing warns and nothing raises: NaN and inf follow IEEE
arithmetic, each row on its own, and a row that has no direction is reported through the
return value before ``out`` is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._distances import row_dots, squared_distances
from ruvector._kernels.fallback._threads import blas_threads

__all__ = [
    "batch_normalize",
    "cosine_similarity",
    "l2_norm",
    "normalize",
    "pairwise_distances",
    "softmax",
]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

_SMALL, _LARGE = 1e-280, 1e280
_TILE_ROWS = 256
_TILE_ELEMENTS = 1 << 17
# Pairs closer than this fraction of their squared norms are summed from differences, so that
# every float32 distance is right to rounding.
_CANCELLED = 1e-6


def softmax(x: _Array, temperature: float, out: _Array) -> None:
    """Write ``exp((x - max) / temperature)`` over its sum, row by row; works in place.

    ``temperature`` is finite and positive. A row that is all -inf becomes zeros, a row
    with NaN or +inf becomes NaN.
    """
    if x.size == 0:
        return
    peak = x.max(axis=1, keepdims=True)
    peak[peak == -np.inf] = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        np.subtract(x, peak, out=out)
        if temperature != 1:
            # In float64, because a small temperature may be zero in float32.
            np.divide(out, temperature, out=out, dtype=np.float64, casting="same_kind")
        np.exp(out, out=out)
        total = out.sum(axis=1, keepdims=True)
        total[total == 0] = 1
        np.divide(out, total, out=out)


def l2_norm(x: _Array, out: _Array) -> None:
    """Write the Euclidean norm of every row to ``out`` ``(rows,)``."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out[:] = _norms(x)


def normalize(x: _Array, out: _Array) -> bool:
    """Write every row divided by its Euclidean norm; works in place.

    Returns True, or False with ``out`` untouched where a row is all zeros.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y, _ = _in_range(x)
        norms = np.sqrt(row_dots(y, y))
        if not norms.all():
            return False
        np.divide(y, norms[:, None], out=out, casting="same_kind")
    return True


def cosine_similarity(a: _Array, b: _Array, out: _Array) -> bool:
    """Write ``a_i.b_i / (|a_i| |b_i|)`` to ``out`` ``(rows,)``, kept within [-1, 1].

    ``a`` and ``b`` have ``rows`` rows each, or one row that goes with every row of the
    other. Returns True, or False with ``out`` untouched where a row is all zeros.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        a, _ = _in_range(a)
        b, _ = _in_range(b)
        norm_a = np.sqrt(row_dots(a, a))
        norm_b = np.sqrt(row_dots(b, b))
        if not (norm_a.all() and norm_b.all()):
            return False
        cosine = row_dots(*np.broadcast_arrays(a, b)) / (norm_a * norm_b)
        np.clip(cosine, -1, 1, out=out, casting="same_kind")
    return True


def batch_normalize(x: _Array, epsilon: float, out: _Array) -> None:
    """Write ``(x - mean) / sqrt(variance + epsilon)`` of every column; works in place.

    Mean and (population) variance are taken over the rows, as the first row plus the mean
    difference from it and from the centred values: a constant column becomes exactly zero.
    ``epsilon`` is finite and positive.
    """
    if x.size == 0:
        return
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        first = x[0].astype(np.float64)
        total = np.zeros_like(first)
        for block in _blocks(len(x), x.shape[1]):
            total += (x[block] - first).sum(axis=0)
        mean = first + total / len(x)
        squares = np.zeros_like(first)
        for block in _blocks(len(x), x.shape[1]):
            squares += np.square(x[block] - mean).sum(axis=0)
        deviation = np.sqrt(squares / len(x) + epsilon)
        for block in _blocks(len(x), x.shape[1]):
            out[block] = (x[block] - mean) / deviation


def pairwise_distances(x: _Array, out: _Array, threads: int) -> None:
    """Write the Euclidean distance of every pair of rows to ``out`` ``(rows, rows)``.

    ``out`` is exactly symmetric, its diagonal exactly zero (NaN for a row that holds NaN
    or inf). A float64 distance is as accurate as the sum of squared float64 differences, a
    float32 one to three units in the last place (here to rounding), close rows included.
    Scratch beyond ``out``: a float64 copy of ``x`` and tiles of constant size. At most
    ``threads`` threads are used.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if x.dtype == np.float64:
            _distances_by_difference(x, out)
        else:
            with blas_threads(threads, x.size * len(x)):
                _distances_by_product(x, out)


def _distances_by_difference(x: _Array, out: _Array) -> None:
    for i in range(len(x)):
        for block in _blocks(len(x) - i, x.shape[1]):
            columns = slice(i + block.start, i + block.stop)
            distance = _norms(x[columns] - x[i])
            out[i, columns] = distance
            out[columns, i] = distance


def _distances_by_product(x: _Array, out: _Array) -> None:
    """Form ``|a|^2 + |b|^2 - 2 a.b`` in float64, around the mean, and redo close pairs."""
    y = x.astype(np.float64)
    finite = np.isfinite(y).all(axis=1)
    if finite.any():
        # A common shift changes no difference and leaves less to cancel.
        y -= y[finite].mean(axis=0)
    for rows in _tiles(0, len(y)):
        for columns in _tiles(rows.start, len(y)):
            tile = squared_distances(y[rows], y[columns], _CANCELLED, x[rows], x[columns])
            if rows == columns:
                tile = np.triu(tile) + np.triu(tile, 1).T
            tile = np.sqrt(tile)
            out[rows, columns] = tile
            out[columns, rows] = tile.T


def _norms(x: _Array) -> _Float64:
    norms = np.sqrt(row_dots(x, x))
    if x.dtype == np.float64:
        extreme = ~((norms > _SMALL**0.5) & (norms < _LARGE**0.5))
        y, peak = _in_range(x[extreme])
        norms[extreme] = peak * np.sqrt(row_dots(y, y))
    return norms


def _in_range(x: _Array) -> tuple[_Array, _Float64]:
    """Return rows whose squares can be summed in float64, and what each was divided by."""
    factor = np.ones(len(x))
    if x.dtype != np.float64:
        return x, factor
    squares = row_dots(x, x)
    extreme = np.flatnonzero(~((squares > _SMALL) & (squares < _LARGE)))
    if x.shape[1] and len(extreme):
        peak = np.abs(x[extreme]).max(axis=1)
        repairable = (peak > 0) & (peak < np.inf)
        factor[extreme[repairable]] = peak[repairable]
        x = x / factor[:, None]
    return x, factor


def _blocks(rows: int, d: int) -> Iterator[slice]:
    step = max(1, _TILE_ELEMENTS // max(1, d))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def _tiles(start: int, stop: int) -> Iterator[slice]:
    return (slice(i, min(i + _TILE_ROWS, stop)) for i in range(start, stop, _TILE_ROWS))

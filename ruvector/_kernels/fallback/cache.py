"""Rows of vectors brought to a storage type, int8 with a scale for each row among them.

For one head of one row x the whole numbers and their scale are (symmetric absmax
quantisation, Dettmers et al. 2022, arXiv 2208.07339)::

    scale = max |x| / 127        n = round(x / scale), half to even

so that ``|x - scale n| <= scale / 2``, a row of zeros having the scale 0. The quotient is
formed in float64, where no tie is missed. Scratch is a few blocks of a megabyte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage

__all__ = ["load_rows", "store_rows"]

_Array = NDArray[Any]

_BLOCK = 1 << 17


def store_rows(rows: _Array, out: _Array, scales: NDArray[np.float32] | None) -> bool:
    """Write rows in the storage type of `out`.

    Parameters
    ----------
    rows : ndarray, shape (n, heads, d)
        float32, float16, or uint16 holding the bits of bfloat16; the last axis contiguous,
        here as in what follows.
    out : ndarray, shape (n, heads, d)
        Takes the rows: float32, float16, uint16 for bfloat16, or int8.
    scales : ndarray, shape (heads, n), or None
        Takes the scale of each row of int8, of the other types none.

    Returns
    -------
    bool
        Whether every number fits: int8 takes finite ones, and the others turn no finite
        number into an infinite one. `out` and `scales` are arbitrary where not.
    """
    if rows.dtype == out.dtype:
        out[...] = rows
        return True
    step = max(1, _BLOCK // max(1, rows.shape[1] * rows.shape[2]))
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            wide = _storage.widen(rows[block])
            if scales is None:
                _storage.store(out[block], wide)
                fits = _fits(wide, out[block])
            else:
                fits = _quantize(wide, out[block], scales[:, block])
            if not fits:
                return False
    return True


def _fits(wide: _Array, stored: _Array) -> bool:
    infinite = np.isinf(_storage.widen(stored))
    return not infinite.any() or bool(np.isinf(wide[infinite]).all())


def _quantize(wide: _Array, out: _Array, scales: NDArray[np.float32]) -> bool:
    largest = np.maximum(wide.max(axis=-1, initial=0), -wide.min(axis=-1, initial=0))
    scale = (largest / 127).astype(np.float32)
    if not np.isfinite(scale).all():
        return False
    scales[...] = scale.T
    divisor = np.where(scale == 0, np.inf, scale.astype(np.float64))
    quotient = wide / divisor[..., np.newaxis]
    np.rint(quotient, out=quotient)
    # A scale that is subnormal has lost digits, and the quotient may be a little more.
    np.clip(quotient, -127, 127, out=quotient)
    out[...] = quotient
    return True


def load_rows(stored: _Array, scales: NDArray[np.float32] | None) -> _Array:
    """Read rows as float32: a view of those that are.

    Parameters
    ----------
    stored : ndarray, shape (n, heads, d)
        As `out` of :func:`store_rows`.
    scales : ndarray, shape (heads, n), or None
        The scale of each row of int8.

    Returns
    -------
    ndarray, shape (n, heads, d)
        `stored` itself where it is float32.
    """
    wide = _storage.widen(stored)
    return wide if scales is None else wide * scales.T[..., np.newaxis]

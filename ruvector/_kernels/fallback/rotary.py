"""Vectors turned by rotary positions: the NumPy twin of the compiled kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _rotary, _storage

__all__ = ["rotate"]

_Array = NDArray[Any]

# Numbers that are turned at a time.
_TURNED = 1 << 18


def rotate(
    x: _Array,
    out: _Array,
    positions: NDArray[np.int64],
    table: _Array,
    neighbours: bool,
    threads: int,
) -> None:
    """Turn every head of every vector by the position where the vector stands.

    Parameters
    ----------
    x : ndarray, shape (N, H, D)
        float32, float64, float16, or uint16 holding the bits of bfloat16, with any strides
        but for the last axis, which is contiguous. D is even.
    out : ndarray, shape (N, H, D)
        Takes the turned vectors, in the dtype of `x`. Overlaps no input.
    positions : ndarray of int64, shape (N,)
        Contiguous; between 0 and ``P - 1``.
    table, neighbours
        As in :class:`ruvector._kernels.spec.RotarySpec`.
    threads : int
        Unused.
    """
    step = max(1, _TURNED // max(1, x.shape[1] * x.shape[2]))
    with np.errstate(all="ignore"):
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            rows = x[part, np.newaxis].swapaxes(1, 2)
            places = positions[part, np.newaxis]
            made = _rotary.turned(rows, places, table, neighbours)
            _storage.store(out[part], made[:, :, 0])

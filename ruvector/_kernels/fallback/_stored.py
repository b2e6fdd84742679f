"""Key or value rows as they are stored, made ready for BLAS one tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage

__all__ = ["StoredRows", "part_of_scales"]

_Array = NDArray[Any]


class StoredRows:
    """Key or value rows of some heads in the compute type, times their scales.

    Parameters
    ----------
    array : ndarray, shape (B, heads, n, d)
        Of any storage type.
    scales : ndarray, shape (B, heads, n), or None
        What the rows of whole numbers are multiplied by.
    at_once : bool
        Whether to convert all rows now, if they need to be, and not tile by tile.
    """

    __slots__ = ("_array", "_ready", "_scales")

    def __init__(self, array: _Array, scales: _Array | None, at_once: bool) -> None:
        self._ready = scales is None and not _storage.needs_copy(array)
        if at_once and not self._ready:
            array, self._ready = _scaled(array, scales), True
        self._array, self._scales = array, scales

    def tile(self, start: int, stop: int) -> _Array:
        """Give the rows from `start` to `stop`, for BLAS to read."""
        rows = self._array[:, :, start:stop]
        if self._ready:
            return rows
        scales = self._scales
        return _scaled(rows, None if scales is None else scales[:, :, start:stop])


def _scaled(rows: _Array, scales: _Array | None) -> _Array:
    ready = _storage.ready(rows)
    return ready if scales is None else ready * scales[..., np.newaxis]


def part_of_scales(scales: _Array | None, entries: slice, heads: slice) -> _Array | None:
    """Give the scales of some batch entries and heads, where there are any."""
    return None if scales is None else scales[entries, heads]

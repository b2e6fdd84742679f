"""Rotary positions: rows of queries and keys turned by the places where they stand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.spec import RotarySpec

__all__ = ["TurnedRows", "turned"]

_Array = NDArray[Any]


def turned(
    rows: _Array, positions: NDArray[np.int64], table: _Array, neighbours: bool
) -> _Array:
    """Turn rows ``(B, H, L, D)`` that stand at positions ``(B, L)``; the compute type.

    `table` and `neighbours` are as in RotarySpec.
    """
    rows = _storage.widen(rows)
    angles = table[positions][:, np.newaxis]
    half = rows.shape[3] // 2
    if neighbours:
        first, second = slice(0, None, 2), slice(1, None, 2)
    else:
        first, second = slice(0, half), slice(half, None)
    a, b = rows[..., first], rows[..., second]
    c, s = angles[..., first], angles[..., second]
    out = np.empty(rows.shape, rows.dtype)
    np.subtract(a * c, b * s, out=out[..., first])
    np.add(a * s, b * c, out=out[..., second])
    return out


class TurnedRows:
    """Keys of some heads, turned; all of them at once where `keep` says so."""

    __slots__ = ("_positions", "_rotary", "_rows", "_whole")

    def __init__(self, rows: _Array, entries: slice, rotary: RotarySpec, keep: bool) -> None:
        self._rows, self._rotary = rows, rotary
        self._positions = rotary.key_positions[entries]
        self._whole = self._made(0, rows.shape[2]) if keep else None

    def tile(self, start: int, stop: int) -> _Array:
        """Give the rows `start` to `stop` of every head."""
        if self._whole is not None:
            return self._whole[:, :, start:stop]
        return self._made(start, stop)

    def _made(self, start: int, stop: int) -> _Array:
        rotary, positions = self._rotary, self._positions[:, start:stop]
        rows = self._rows[:, :, start:stop]
        return turned(rows, positions, rotary.table, rotary.neighbours)

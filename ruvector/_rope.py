"""The angles of rotary positions, and tables of their sines and cosines, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import Array

__all__ = ["Turns", "distance_bucket"]

_Float64 = NDArray[np.float64]

# Distances up to here are positions of their own; longer ones share them.
_EXACT = 8


class Turns:
    """How far each pair of a head turns at each position.

    Parameters
    ----------
    width : int
        Width of a head; even.
    positions : int
        How many positions there are.
    base, factor : float
        As in :class:`ruvector.RoPEConfig`, as are `scaling` and the `beta_` values.
    scaling : {"linear", "ntk", "yarn"}
    neighbours : bool
        Whether pairs are neighbours, not halves apart.
    original : float
        The length a model was trained on.
    beta_fast, beta_slow : float

    Attributes
    ----------
    neighbours : bool
        As given.
    angles : ndarray, shape (width / 2,)
        Turn of each pair for one position, in radians.
    amplitude : float
        Factor on sines and cosines.
    """

    __slots__ = ("_positions", "_tables", "amplitude", "angles", "neighbours")

    def __init__(
        self,
        width: int,
        positions: int,
        *,
        base: float,
        factor: float,
        scaling: str,
        neighbours: bool,
        original: float,
        beta_fast: float,
        beta_slow: float,
    ) -> None:
        self.neighbours = neighbours
        self.amplitude = 1.0
        self._positions = positions
        self._tables: dict[np.dtype[Any], Array] = {}
        if scaling == "ntk":
            base *= factor ** (width / (width - 2))
        exponents = np.arange(0, width, 2) / width
        self.angles: _Float64 = base**-exponents
        if scaling == "linear":
            self.angles /= factor
        elif scaling == "yarn":
            slow = _ramp(width, base, original, beta_fast, beta_slow)
            self.angles *= slow / factor + (1 - slow)
            self.amplitude = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0

    def table(self, count: int, dtype: np.dtype[Any]) -> Array:
        """Return cosines and sines of at least the first `count` positions.

        Parameters
        ----------
        count : int
            At most `positions`.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        ndarray, shape (rows, width)
            As ``RotarySpec.table``.
        """
        table = self._tables.get(dtype)
        if table is None or len(table) < count:
            # Doubled, so that positions that grow one by one cost no more than twice.
            rows = min(self._positions, 1 << (count - 1).bit_length()) if count else 0
            table = self._tables[dtype] = self._made(rows).astype(dtype)
        return table

    def backward(self, table: Array) -> Array:
        """Return the table of the opposite turns."""
        opposite = table.copy()
        sines = slice(1, None, 2) if self.neighbours else slice(len(self.angles), None)
        np.negative(table[:, sines], out=opposite[:, sines])
        return opposite

    def _made(self, rows: int) -> _Float64:
        half = len(self.angles)
        turned = np.multiply.outer(np.arange(rows, dtype=np.float64), self.angles)
        table = np.empty((rows, 2 * half))
        first, second = slice(0, half), slice(half, None)
        if self.neighbours:
            first, second = slice(0, None, 2), slice(1, None, 2)
        np.multiply(np.cos(turned), self.amplitude, out=table[:, first])
        np.multiply(np.sin(turned), self.amplitude, out=table[:, second])
        return table


def _ramp(
    width: int, base: float, original: float, beta_fast: float, beta_slow: float
) -> _Float64:
    """Return how slow each pair is, from 0 to 1, as YaRN mixes the two kinds of angles."""

    def pair_that_turns(times: float) -> float:
        return width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), width - 1)
    slope = max(high - low, 0.001)
    return np.clip((np.arange(width // 2) - low) / slope, 0, 1)


def distance_bucket(distances: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Return distances as positions up to `limit`, the long ones in logarithmic buckets."""
    # frexp of an integer less one is the exponent of the next power of two.
    exponents = np.frexp(np.maximum(distances, 1) - 1.0)[1]
    buckets = np.where(distances <= _EXACT, distances, _EXACT + exponents)
    return np.minimum(buckets, limit)

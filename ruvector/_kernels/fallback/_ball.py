"""Rows as points of a Poincare ball: where they lie, how far apart, and what is summed of them.

For x inside the ball of curvature -c ::

    d(x, y) = 2/sqrt(c) asinh(sqrt(c |x - y|^2 / ((1 - c|x|^2) (1 - c|y|^2))))

(Ganea et al. 2018, arXiv 1805.09112). Points are float64 whatever the storage type: there
``|x|^2 + |y|^2 - 2 x.y`` serves down to points much nearer than float32 can tell apart
elsewhere, and only what is nearer still is summed from differences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.spec import BallSpec

__all__ = [
    "BallPart",
    "Distances",
    "KeyPoints",
    "Points",
    "ValueRows",
    "largest_radius",
    "midpoint",
    "place",
    "points",
    "sum_differences",
]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# What keeps a shortened row inside the ball (see BallSpec).
_MARGIN = 1e-5
# A squared distance below this part of the squared norms is summed from differences. The
# rounding of the other form is 1e-15 of those norms or less.
_NEAR = {np.dtype(np.float32): 1e-7, np.dtype(np.float64): 1e-3}
# Numbers of the differences that are held at a time.
_DIFFERENCES = 1 << 18


class BallPart(NamedTuple):
    """The arrays of a call's part in the ball, ``(B, H or Hkv, length, width)``."""

    query: _Array
    key: _Array
    value: _Array | None
    spec: BallSpec


class Points(NamedTuple):
    """Points of a ball, what distances need of each beside its coordinates."""

    x: _Float64
    square_norm: _Float64
    inside: _Float64
    """``1 - c|x|^2``"""

    def part(self, start: int, stop: int) -> Points:
        """View the points `start` to `stop` of every head."""
        rows = (..., slice(start, stop))
        return Points(self.x[..., start:stop, :], self.square_norm[rows], self.inside[rows])

    def reshape(self, *leading: int) -> Points:
        """View the points with other axes before the coordinates."""
        return Points(
            self.x.reshape(*leading, self.x.shape[-1]),
            self.square_norm.reshape(leading),
            self.inside.reshape(leading),
        )


def largest_radius(curvature: float) -> float:
    """Give the norm that rows are shortened to."""
    return max(float(1 / np.sqrt(curvature)) - _MARGIN, 0.0)


def place(square_norm: _Float64, curvature: float, tangent: bool) -> tuple[_Float64, _Float64]:
    """Find where rows of given squared norms lie in the ball.

    Parameters
    ----------
    square_norm : ndarray of float64
        Of each row.
    curvature, tangent
        As in :class:`BallSpec`.

    Returns
    -------
    factor : ndarray of float64
        What takes each row to its point.
    inside : ndarray of float64
        ``1 - c|x|^2`` of that point.
    """
    root = np.sqrt(curvature)
    limit = largest_radius(curvature)
    norm = np.sqrt(square_norm)
    if tangent:
        angle = root * norm
        factor = np.where(angle > 0, np.tanh(angle) / angle, 1.0)
        # 1 - tanh^2 in a form that does not cancel.
        inside = np.cosh(angle) ** -2.0
    else:
        factor = np.ones_like(norm)
        inside = 1 - curvature * square_norm
    outside = norm * factor > limit
    if outside.any():
        np.copyto(factor, limit / norm, where=outside)
        np.copyto(inside, 1 - curvature * limit * limit, where=outside)
    return factor, inside


def points(rows: _Array, spec: BallSpec) -> Points:
    """Map rows of a storage type into the ball."""
    x: _Float64 = _storage.widen(rows).astype(np.float64)
    square_norm = np.einsum("...d,...d->...", x, x)
    factor, inside = place(square_norm, spec.curvature, spec.tangent)
    if (factor != 1).any():
        x *= factor[..., np.newaxis]
        square_norm *= factor * factor
    return Points(x, square_norm, inside)


def midpoint(
    above: _Float64, below: _Float64, curvature: float, weight: float | _Float64
) -> _Float64:
    """Turn weighted sums of ``lambda x`` and of ``lambda - 1`` into Einstein midpoints.

    With r the quotient of the two the midpoint is ``r / (1 + sqrt(1 - c|r|^2))`` (Shimizu et
    al. 2021, arXiv 2006.08210, theorem 2); sums over nothing give 0.

    Parameters
    ----------
    above : ndarray of float64, shape (rows, d)
    below : ndarray of float64, shape (rows, 1)
    curvature : float
    weight : float or ndarray of float64, shape (rows, 1)
        The sum of the weights; anything positive beside sums over nothing.
    """
    rest = below * below
    if len(above) == 1:
        # The one row's product with itself, for which einsum takes longer to start.
        rest -= curvature * (above @ above.T)
    else:
        rest -= curvature * np.einsum("nd,nd->n", above, above)[:, np.newaxis]
    # One point alone reaches this bound; near the boundary the difference is all rounding.
    np.maximum(rest, weight * weight, out=rest)
    np.sqrt(rest, out=rest)
    rest += below
    result: _Float64 = above / rest
    return result


class Distances:
    """The distances of a block's queries from the keys, as a part of their scores.

    Parameters
    ----------
    part : BallPart
        The whole call's.
    place : tuple of slice
        Batch entries, heads and rows of the block.
    lines : tuple of int
        Axes of the rows as they lie in a tile.
    keys : KeyPoints
        The keys of those heads.
    unit : float
        What scores are divided by.
    """

    __slots__ = ("_keys", "_queries", "_spec", "_unit")

    def __init__(
        self,
        part: BallPart,
        place: tuple[slice, slice, slice],
        lines: tuple[int, ...],
        keys: KeyPoints,
        unit: float,
    ) -> None:
        self._keys, self._spec, self._unit = keys, part.spec, unit
        self._queries = points(part.query[place], part.spec).reshape(*lines)

    @property
    def queries(self) -> Points:
        """The block's queries as they lie in a tile."""
        return self._queries

    def keys(self, start: int, stop: int) -> Points:
        """Give the keys `start` to `stop` of every head."""
        return self._keys.tile(start, stop)

    def subtract_from(
        self, scores: _Array, start: int, stop: int, ratios: _Float64 | None = None
    ) -> None:
        """Subtract what the distance from the keys `start` to `stop` counts.

        `ratios`, flat and at least as long as `scores`, takes ``sinh(sqrt(c) d / 2)^2``.
        """
        queries, keys, spec = self._queries, self._keys.tile(start, stop), self._spec
        z = queries.square_norm[..., :, np.newaxis] + keys.square_norm[..., np.newaxis, :]
        square = np.matmul(queries.x, keys.x.swapaxes(-1, -2))
        square *= -2
        square += z
        z *= _NEAR[scores.dtype]
        near = square < z
        if near.any():
            sum_differences(square, np.nonzero(near), queries.x, keys.x)
        square *= spec.curvature / queries.inside[..., :, np.newaxis]
        square /= keys.inside[..., np.newaxis, :]
        if ratios is not None:
            ratios[: square.size] = square.ravel()
        np.sqrt(square, out=square)
        distance = square.astype(scores.dtype, copy=False)
        np.arcsinh(distance, out=distance)
        distance *= 2 / np.sqrt(spec.curvature) * spec.distance_scale / self._unit
        scores -= distance


def sum_differences(
    square: _Float64, pairs: tuple[NDArray[np.intp], ...], x: _Float64, y: _Float64
) -> None:
    """Replace the squared distances of some pairs by sums of squared differences."""
    *head, row, column = pairs
    step = max(1, _DIFFERENCES // max(1, x.shape[-1]))
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        own = tuple(axis[some] for axis in head)
        difference = x[(*own, row[some])] - y[(*own, column[some])]
        square[(*own, row[some], column[some])] = np.einsum("nd,nd->n", difference, difference)


class KeyPoints:
    """Keys of some heads as points, all of them made at once where `keep` says so."""

    __slots__ = ("_rows", "_spec", "_whole")

    def __init__(self, rows: _Array, spec: BallSpec, keep: bool) -> None:
        self._rows, self._spec = rows, spec
        self._whole = points(rows, spec) if keep else None

    def tile(self, start: int, stop: int) -> Points:
        """Give the points `start` to `stop` of every head."""
        if self._whole is not None:
            return self._whole.part(start, stop)
        return points(self._rows[:, :, start:stop], self._spec)


class ValueRows:
    """What is summed of the values: ``[v, lambda x(v), lambda - 1]``, lambda of BallSpec."""

    __slots__ = ("_ball_rows", "_rows", "_spec", "_whole")

    def __init__(self, rows: _Array, ball_rows: _Array, spec: BallSpec, keep: bool) -> None:
        self._rows, self._ball_rows, self._spec = rows, ball_rows, spec
        self._whole = self._made(0, rows.shape[2]) if keep else None

    def tile(self, start: int, stop: int) -> _Array:
        """Give the rows `start` to `stop` of every head, in the compute type."""
        if self._whole is not None:
            return self._whole[:, :, start:stop]
        return self._made(start, stop)

    def _made(self, start: int, stop: int) -> _Array:
        rows = self._rows[:, :, start:stop]
        x, _, inside = points(self._ball_rows[:, :, start:stop], self._spec)
        width = rows.shape[3]
        made = np.empty(
            (*x.shape[:3], width + x.shape[3] + 1), _storage.compute_dtype(self._ball_rows)
        )
        conformal = 2 / inside
        made[..., :width] = _storage.widen(rows)
        np.multiply(x, conformal[..., np.newaxis], out=made[..., width:-1])
        np.subtract(conformal, 1, out=made[..., -1])
        return made

"""Points of the Poincare ball on canonical arrays: maps, distances and means.

Every array is C-contiguous, aligned and native-endian, float32 or float64, and all arrays of
one call have the same dtype. ``x``, ``y`` and the like are ``(rows, d)`` and may be
read-only; of two of them one may have a single row, which goes with every row of the other.
``out`` is written whole and shares no memory with an input. ``curvature`` is positive and
finite; ``limit`` is the norm to which rounding is shortened where it would leave the ball.

Arithmetic is float64 whatever the dtype, in blocks of rows. ``1 - c|x|^2`` is taken from the
squared norm in float64 and ``|x - y|^2`` from differences, and sums and differences of points
appear in forms that do not cancel (below, A = 1 - c|x|^2, B = 1 - c|y|^2)::

    x (+) y = (A (x + y) + c|x + y|^2 x) / (A B + c|x + y|^2)
    d(x, y) = 2/sqrt(c) asinh(sqrt(c) |x - y| / sqrt(A B))

which are those of Ganea et al. 2018 (arXiv 1805.09112) rearranged. A point outside of the
ball gives NaN, one on its boundary is infinitely far away. Nothing warns and nothing raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _ball
from ruvector._kernels.fallback._ball_derivatives import midpoint_backward, to_ball_backward
from ruvector._kernels.fallback._means import einstein_midpoint, frechet_mean
from ruvector._kernels.fallback._means_backward import frechet_mean_backward
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.fallback._tiles import blocks
from ruvector._kernels.spec import AttentionSpec, BallSpec

__all__ = [
    "conformal_factor",
    "einstein_midpoint",
    "exp_map",
    "expmap0",
    "frechet_mean",
    "frechet_mean_backward",
    "log_map",
    "logmap0",
    "lorentz_to_poincare",
    "midpoint",
    "midpoint_backward",
    "mobius_add",
    "mobius_scalar_mult",
    "poincare_distance",
    "poincare_to_lorentz",
    "project_to_ball",
    "space_scores",
    "to_ball",
    "to_ball_backward",
]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Numbers of one operand that are worked on at a time.
_BLOCK = 1 << 15


def project_to_ball(x: _Array, out: _Array, limit: float) -> None:
    """Shorten rows to norm `limit` at the most."""
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            out[rows] = _shortened(a, limit)


def to_ball(x: _Array, out: _Array, curvature: float, tangent: bool) -> None:
    """Read rows as points in the way that :class:`BallSpec` describes."""
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            factor, _ = _ball.place(_squares(a)[:, 0], curvature, tangent)
            out[rows] = a * factor[:, np.newaxis]


def poincare_distance(x: _Array, y: _Array, out: _Array, curvature: float) -> None:
    """Write the distance of every pair of rows to ``out`` ``(rows,)``."""
    with np.errstate(all="ignore"):
        for rows, a, b in _pairs(x, y):
            square = _squares(a - b)
            out[rows] = _distance(
                square, _inside(a, curvature), _inside(b, curvature), curvature
            )[:, 0]


def mobius_add(x: _Array, y: _Array, out: _Array, curvature: float, limit: float) -> None:
    """Write the Mobius sum of every pair of rows."""
    with np.errstate(all="ignore"):
        for rows, a, b in _pairs(x, y):
            total = _sum(a, b, _inside(b, curvature), curvature)
            out[rows] = _shortened(total, limit)


def mobius_scalar_mult(
    factor: _Float64, x: _Array, out: _Array, curvature: float, limit: float
) -> None:
    """Multiply the distance of every row from the origin by ``factor`` ``(rows,)``."""
    root = np.sqrt(curvature)
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            length = root * np.sqrt(_squares(a))
            r = factor[rows, np.newaxis]
            ratio = np.tanh(r * np.arctanh(length)) / length
            still = (r == 0) & (length <= 1)
            out[rows] = _shortened(a * np.where((length == 0) | still, r, ratio), limit)


def exp_map(base: _Array, tangent: _Array, out: _Array, curvature: float, limit: float) -> None:
    """Follow the geodesics that leave the rows of `base` along those of `tangent`."""
    root = np.sqrt(curvature)
    with np.errstate(all="ignore"):
        for rows, x, v in _pairs(base, tangent):
            half = 1 / _inside(x, curvature)
            length = root * np.sqrt(_squares(v))
            angle = _times(length, half)
            step = _times(v, np.where(length == 0, half, np.tanh(angle) / length))
            # Of the step 1 - c|y|^2 is 1/cosh^2, which does not cancel.
            total = _sum(x, step, np.cosh(angle) ** -2.0, curvature)
            out[rows] = _shortened(total, limit)


def log_map(base: _Array, point: _Array, out: _Array, curvature: float) -> None:
    """Write the tangent vectors at the rows of `base` that lead to those of `point`."""
    with np.errstate(all="ignore"):
        for rows, x, y in _pairs(base, point):
            a = _inside(x, curvature)
            gap = y - x
            square = _squares(gap)
            direction = a * gap - curvature * square * x
            norm = np.sqrt(_squares(direction))
            length = a / 2 * _distance(square, a, _inside(y, curvature), curvature)
            # At a base on the boundary every distance is 0.
            out[rows] = _times(direction, np.where((norm == 0) | (a == 0), 0, length / norm))


def expmap0(tangent: _Array, out: _Array, curvature: float, limit: float) -> None:
    """Apply the exponential map at the origin."""
    root = np.sqrt(curvature)
    with np.errstate(all="ignore"):
        for rows, v in _blocks(tangent):
            length = root * np.sqrt(_squares(v))
            ratio = np.where(length == 0, 1, np.tanh(length) / length)
            out[rows] = _shortened(v * ratio, limit)


def logmap0(point: _Array, out: _Array, curvature: float) -> None:
    """Apply the logarithmic map at the origin."""
    with np.errstate(all="ignore"):
        for rows, y in _blocks(point):
            out[rows] = _log0(y, curvature)


def conformal_factor(x: _Array, out: _Array, curvature: float) -> None:
    """Write ``2 / (1 - c|x|^2)`` of every row to ``out`` ``(rows,)``."""
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            out[rows] = 2 / _inside(a, curvature)[:, 0]


def poincare_to_lorentz(x: _Array, out: _Array, curvature: float) -> None:
    """Write points of the hyperboloid to ``out`` ``(rows, d + 1)``, time first."""
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            inside = _inside(a, curvature)
            out[rows, :1] = (2 - inside) / (np.sqrt(curvature) * inside)
            out[rows, 1:] = _times(a, 2 / inside)


def lorentz_to_poincare(x: _Array, out: _Array, curvature: float, limit: float) -> None:
    """Write the points of the ball that rows ``(rows, d + 1)`` of the hyperboloid stand for."""
    with np.errstate(all="ignore"):
        for rows, a in _blocks(x):
            time = np.where(a[:, :1] > 0, a[:, :1], np.nan)
            out[rows] = _shortened(a[:, 1:] / (1 + np.sqrt(curvature) * time), limit)


def midpoint(state: _Array, out: _Array, curvature: float, to_tangent: bool) -> None:
    """Finish averages of ``[lambda x, lambda - 1]``, ``(rows, d + 1)``, as midpoints.

    An average over nothing gives 0. The result is the logarithm of the midpoint at the
    origin where `to_tangent`.
    """
    with np.errstate(all="ignore"):
        for rows, a in _blocks(state):
            point = _ball.midpoint(a[:, :-1], a[:, -1:], curvature, 1.0)
            out[rows] = _log0(point, curvature) if to_tangent else point


def space_scores(
    query: _Array,
    key: _Array,
    out: _Array,
    ball_query: _Array,
    ball_key: _Array,
    ball_out: _Array,
    scale: float,
    ball: BallSpec,
    threads: int,
) -> None:
    """Write dot products and negative distances of every query and key.

    Parameters
    ----------
    query, key, ball_query, ball_key
        As in ``softmax.attend_ball``.
    out : ndarray, shape (B, H, Lq, Lk)
        Takes `scale` times the dot products, in the compute type.
    ball_out : ndarray, shape (B, H, Lq, Lk)
        Takes the distances times ``-ball.distance_scale``.
    scale : float
        What a dot product counts.
    ball : BallSpec
        How rows are read as points, and what their distance counts.
    threads : int
        How many threads BLAS may use.
    """
    spec = AttentionSpec(scale=scale)
    part = _ball.BallPart(ball_query, ball_key, None, ball)
    work = query[..., 0].size * key.shape[2] * (query.shape[3] + ball_query.shape[3])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for target, found in (
            (out, blocks(query, key, None, 0, spec)),
            (ball_out, blocks(ball_query[..., :0], ball_key[..., :0], None, 0, spec, part)),
        ):
            for block in found:
                for start, stop, scores in block.tiles():
                    shape = (*block.shape, stop - start)
                    target[block.place][..., start:stop] = scores.reshape(shape)


def _blocks(x: _Array) -> Iterator[tuple[slice, _Float64]]:
    """Walk rows in float64."""
    step = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        yield rows, x[rows].astype(np.float64)


def _pairs(x: _Array, y: _Array) -> Iterator[tuple[slice, _Float64, _Float64]]:
    """Walk pairs of rows in float64."""
    if len(x) == len(y):
        for rows, a in _blocks(x):
            yield rows, a, y[rows].astype(np.float64)
    elif len(x) == 1:
        one = x.astype(np.float64)
        for rows, b in _blocks(y):
            yield rows, one, b
    else:
        one = y.astype(np.float64)
        for rows, a in _blocks(x):
            yield rows, a, one


def _squares(x: _Float64) -> _Float64:
    squares: _Float64 = np.einsum("ij,ij->i", x, x)[:, np.newaxis]
    return squares


def _inside(x: _Float64, curvature: float) -> _Float64:
    """Give ``1 - c|x|^2``, NaN for a point outside of the ball."""
    inside = 1 - curvature * _squares(x)
    return np.where(inside < 0, np.nan, inside)


def _sum(x: _Float64, y: _Float64, inside_y: _Float64, curvature: float) -> _Float64:
    inside = _inside(x, curvature)
    total = x + y
    square = curvature * _squares(total)
    below = inside * inside_y + square
    total *= inside / below
    total += x * (square / below)
    return total


def _distance(square: _Float64, a: _Float64, b: _Float64, curvature: float) -> _Float64:
    root = np.sqrt(curvature)
    distance: _Float64 = np.arcsinh(root * np.sqrt(square) / np.sqrt(a) / np.sqrt(b))
    distance *= 2 / root
    # Of a point of the boundary to itself, too.
    distance[(square == 0) & (a == 0) & (b == 0)] = 0
    return distance


def _log0(y: _Float64, curvature: float) -> _Float64:
    length = np.sqrt(curvature * _squares(y))
    return _times(y, np.where(length == 0, 1, np.arctanh(length) / length))


def _times(x: _Float64, factor: _Float64) -> _Float64:
    """Return x times a factor of each row; 0 stays 0 beside that of the boundary, infinity."""
    result: _Float64 = x * factor
    endless = np.isinf(factor)
    if endless.any():
        result[(x == 0) & endless] = 0
    return result


def _shortened(x: _Float64, limit: float) -> _Float64:
    norm = np.sqrt(_squares(x))
    outside = norm > limit
    return x * np.where(outside, limit / norm, 1) if outside.any() else x

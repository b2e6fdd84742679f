"""Means of weighted points of the Poincare ball.

The Einstein midpoint is a quotient of sums (:func:`ruvector._kernels.fallback._ball.midpoint`).
The Frechet mean is the point of least weighted squared distance, found as Lou et al. 2020,
"Differentiating through the Frechet Mean", arXiv 2003.00335: with c = 1 and
``D_i = |x_i - y|^2 / ((1 - |x_i|^2) (1 - |y|^2))`` the squared distance is the concave
function ``4 asinh(sqrt(D_i))^2``, whose tangent at the present y bounds it from above. The
bound is least at a multiple of ``sum_i a_i x_i``, ``a_i = w_i g(D_i) / (1 - |x_i|^2)``, where g
is the derivative. Each step lowers the sum, without a step size to choose.

Half the squared distance is strongly convex with constant 1, so that the norm of the
gradient bounds the distance that is left to the mean: that is what is compared with the
tolerance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._ball import midpoint, sum_differences

__all__ = ["einstein_midpoint", "frechet_mean"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Weights of the means that are worked on together.
_TILE = 1 << 18
# A squared distance below this part of the squared norms is summed from differences.
_NEAR = 1e-6


def einstein_midpoint(
    points: _Array, weights: _Array, out: _Array, curvature: float, limit: float
) -> None:
    """Write the Einstein midpoints of every set of points to ``out`` ``(sets, m, d)``.

    Parameters
    ----------
    points, weights, out, curvature, limit
        As in `frechet_mean`.
    """
    with np.errstate(all="ignore"):
        for i in range(len(points)):
            x, square, unusable = _in_unit_ball(points[i], curvature)
            for rows in _tiles(weights.shape[1], len(x)):
                own = weights[i, rows].astype(np.float64)
                mean = _midpoints(x, square, own)
                out[i, rows] = _finished(mean, own, unusable, curvature, limit)


def frechet_mean(
    points: _Array,
    weights: _Array,
    out: _Array,
    curvature: float,
    tolerance: float,
    max_iterations: int,
    limit: float,
) -> float:
    """Write the weighted Frechet means of every set of points to ``out`` ``(sets, m, d)``.

    Parameters
    ----------
    points : ndarray, shape (sets, n, d)
        Points inside the ball.
    weights : ndarray, shape (sets, m, n)
        Not negative, of any sum. A point without weight takes no part, whatever it holds;
        a row without weight gives 0.
    out : ndarray, shape (sets, m, d)
        Takes the means.
    curvature, limit : float
        As everywhere in ``hyperbolic``.
    tolerance : float
        Distance from the mean, in units of ``1/sqrt(c)``, at which to stop.
    max_iterations : int
        Steps after which to stop in any case.

    Returns
    -------
    float
        The largest bound on a distance from the mean, in the same unit.
    """
    worst = 0.0
    with np.errstate(all="ignore"):
        for i in range(len(points)):
            x, square, unusable = _in_unit_ball(points[i], curvature)
            for rows in _tiles(weights.shape[1], len(x)):
                own = weights[i, rows].astype(np.float64)
                mean, left = _search(x, square, own, tolerance, max_iterations)
                out[i, rows] = _finished(mean, own, unusable, curvature, limit)
                worst = max(worst, left)
    return worst


def _tiles(num_rows: int, n: int) -> list[slice]:
    step = max(1, _TILE // max(1, n))
    return [slice(i, min(i + step, num_rows)) for i in range(0, num_rows, step)]


def _in_unit_ball(
    points: _Array, curvature: float
) -> tuple[_Float64, _Float64, NDArray[np.bool_]]:
    """Return points scaled to c = 1, their squared norms, and which lie outside of the ball.

    The latter, NaN among them, are replaced by the origin.
    """
    x = np.multiply(points, np.sqrt(curvature), dtype=np.float64)
    square = np.einsum("nd,nd->n", x, x)
    unusable = ~(square < 1)
    x[unusable], square[unusable] = 0, 0
    return x, square, unusable


def _finished(
    mean: _Float64,
    weights: _Float64,
    unusable: NDArray[np.bool_],
    curvature: float,
    limit: float,
) -> _Float64:
    mean[(weights[:, unusable] != 0).any(axis=1)] = np.nan
    mean /= np.sqrt(curvature)
    norm = np.sqrt(np.einsum("md,md->m", mean, mean))[:, np.newaxis]
    return np.where(norm > limit, mean * (limit / norm), mean)


def _midpoints(x: _Float64, square: _Float64, weights: _Float64) -> _Float64:
    conformal = 2 / (1 - square)
    above = (weights * conformal) @ x
    below = (weights @ (conformal - 1))[:, np.newaxis]
    total = weights.sum(axis=1, keepdims=True)
    return midpoint(above, below, 1.0, np.where(total == 0, 1, total))


def _search(
    x: _Float64, square: _Float64, weights: _Float64, tolerance: float, max_iterations: int
) -> tuple[_Float64, float]:
    """Seek the Frechet means of all rows of weights together, from their midpoints."""
    inside = 1 - square
    mean = _midpoints(x, square, weights)
    total = weights.sum(axis=1)
    left = np.zeros(len(mean))
    active = np.flatnonzero(total > 0)
    for iteration in range(max_iterations + 1):
        y, w = mean[active], weights[active] / total[active, np.newaxis]
        own_square = np.einsum("md,md->m", y, y)[:, np.newaxis]
        own_inside = 1 - own_square
        norms = square + own_square
        gap = norms - 2 * (y @ x.T)
        near = gap < _NEAR * norms
        if near.any():
            sum_differences(gap, np.nonzero(near), y, x)
        ratio = gap / (inside * own_inside)
        slope = 4 * np.arcsinh(np.sqrt(ratio)) / np.sqrt(ratio * ratio + ratio)
        a = w * np.where(ratio == 0, 4, slope) / inside
        whole = a.sum(axis=1, keepdims=True)
        pull = a @ x
        # (1 - |y|^2) times half the gradient, in terms that stay small where it is small.
        gradient = y * (a * gap).sum(axis=1, keepdims=True) - own_inside * (pull - whole * y)
        norm = np.sqrt(np.einsum("md,md->m", gradient, gradient)) / (2 * own_inside[:, 0])
        left[active] = norm
        going = norm > tolerance
        if iteration == max_iterations or not going.any():
            break
        length = np.einsum("md,md->m", pull, pull)[:, np.newaxis]
        mass = whole + (a * square).sum(axis=1, keepdims=True)
        step = 2 * pull / (mass + np.sqrt(np.maximum(mass * mass - 4 * length, 0)))
        active = active[going]
        mean[active] = step[going]
    return mean, float(np.nanmax(left, initial=0.0))

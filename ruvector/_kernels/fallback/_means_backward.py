"""The gradient of weighted Frechet means of the Poincare ball, by implicit differentiation.

At the mean y of points x_i under weights w_i the gradient ``F = sum_i w_i phi'(u_i) du_i/dy``
of the sum of squared distances is 0, so that a change of anything else moves y by
``-H^-1 dF``, H the derivative of F in y (Lou et al. 2020, arXiv 2003.00335, theorem 1). For the
gradient of a mean that is one system of d equations and, with its solution z, the gradient of
``-z.F`` in points and weights. As in `_means` the ball is that of c = 1, where

    u = |x - y|^2 / ((1 - |x|^2) (1 - |y|^2))        phi(u) = 4 asinh(sqrt(u))^2

H takes ``n d^2`` multiply-adds for each mean, the rest ``n d``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._ball import sum_differences

__all__ = ["frechet_mean_backward"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Weights of the means that are worked on together.
_TILE = 1 << 18
# A squared distance below this part of the squared norms is summed from differences.
_NEAR = 1e-6
# Coefficients of asinh(z) / (z sqrt(1 + z^2)) in z^2, and below which u they are used.
_SERIES = (
    1.0, -2 / 3, 8 / 15, -16 / 35, 128 / 315, -256 / 693, 1024 / 3003, -2048 / 6435,
    32768 / 109395,
)  # fmt: skip
_SMALL = 1e-2


def frechet_mean_backward(
    points: _Float64,
    weights: _Array,
    means: _Array,
    gradient: _Array,
    grad_points: _Float64,
    grad_weights: _Float64,
    curvature: float,
) -> float:
    """Take the gradient of ``hyperbolic.frechet_mean`` of one set back to points and weights.

    Parameters
    ----------
    points : ndarray of float64, shape (n, d)
        Points inside the ball.
    weights : ndarray, shape (m, n)
        As in ``hyperbolic.frechet_mean``.
    means : ndarray, shape (m, d)
        What it wrote.
    gradient : ndarray, shape (m, d)
        Gradient of the means.
    grad_points : ndarray of float64, shape (n, d)
        The gradient of the points is added to it.
    grad_weights : ndarray of float64, shape (m, n)
        Takes the gradient of the weights; 0 beside a weight of 0. Its sum under the weights
        is 0 in each row, as only their ratios matter.
    curvature : float
        c.

    Returns
    -------
    float
        The gradient of the curvature, points and weights as they are.
    """
    root = np.sqrt(curvature)
    of_curvature = 0.0
    with np.errstate(all="ignore"):
        x = points * root
        square = np.einsum("nd,nd->n", x, x)
        unusable = ~(square < 1)
        x[unusable], square[unusable] = 0, 0
        sums = np.zeros_like(x)
        step = max(1, _TILE // max(1, len(x), x.shape[1] ** 2))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            given = gradient[rows].astype(np.float64)
            mean = means[rows].astype(np.float64)
            own = weights[rows].astype(np.float64)
            bad = (own[:, unusable] != 0).any(axis=1)
            y = mean * root
            part, grad_weights[rows] = _implicit(x, square, own, y, given / root)
            sums += part
            if bad.any():
                sums[(own[bad] != 0).any(axis=0)] = np.nan
                grad_weights[rows][bad] = np.where(own[bad] != 0, np.nan, 0)
            seen = own.any(axis=1)
            moved = np.where(seen, (given * mean).sum(axis=1), 0)
            of_curvature -= float(moved.sum()) / (2 * curvature)
        touched = sums.any(axis=1)
        grad_points[touched] += root * sums[touched]
        of_curvature += float((sums * x).sum()) / (2 * curvature)
    return of_curvature


def _slopes(u: _Float64) -> tuple[_Float64, _Float64]:
    """Give phi' and phi'' of ``phi(u) = 4 asinh(sqrt(u))^2``."""
    square = u + u * u
    root = np.sqrt(square)
    angle = np.arcsinh(np.sqrt(u))
    first = 4 * angle / root
    second = 2 / square * (1 - angle * (1 + 2 * u) / root)
    small = u < _SMALL
    if small.any():
        few = u[small]
        first[small] = 4 * np.polynomial.polynomial.polyval(few, _SERIES)
        orders = [n * coefficient for n, coefficient in enumerate(_SERIES)][1:]
        second[small] = 4 * np.polynomial.polynomial.polyval(few, orders)
    return first, second


def _implicit(
    x: _Float64, square: _Float64, weights: _Float64, y: _Float64, gradient: _Float64
) -> tuple[_Float64, _Float64]:
    """Give the gradients of the points, summed over the means, and of the weights."""
    inside = 1 - square
    total = weights.sum(axis=1, keepdims=True)
    none = total[:, 0] == 0
    w = weights / np.where(total == 0, 1, total)
    gradient = np.where(none[:, np.newaxis], 0, gradient)
    own_square = np.einsum("md,md->m", y, y)[:, np.newaxis]
    own = 1 - own_square
    norms = square + own_square
    gap = norms - 2 * (y @ x.T)
    near = gap < _NEAR * norms
    if near.any():
        sum_differences(gap, np.nonzero(near), y, x)
    u = gap / (inside * own)
    first, second = _slopes(u)
    # du/dy = -p x + q y, and the second derivative of u in y is
    # q I + 2 p / b ((y - x) y^T + y (y - x)^T) + 8 u / b^2 y y^T
    p = 2 / (inside * own)
    q = p + 2 * u / own
    sharp, slope = w * second, w * first
    mixed = (-sharp * p * q - slope * 2 * p / own) @ x
    outer = sharp * q * q + slope * (4 * p / own + 8 * u / (own * own))
    identity = (slope * q).sum(axis=1)
    spread = sharp * p * p
    system = np.stack([(x.T * row) @ x for row in spread])
    cross = mixed[:, :, np.newaxis] * y[:, np.newaxis, :]
    system += cross + cross.swapaxes(1, 2)
    system += outer.sum(axis=1)[:, np.newaxis, np.newaxis] * (
        y[:, :, np.newaxis] * y[:, np.newaxis, :]
    )
    diagonal = np.arange(x.shape[1])
    system[:, diagonal, diagonal] += np.where(none, 1, identity)[:, np.newaxis]
    z = np.linalg.solve(system, gradient[..., np.newaxis])[..., 0]

    by_x = z @ x.T
    by_y = np.einsum("md,md->m", z, y)[:, np.newaxis]
    along = q * by_y - p * by_x
    of_weights = -first * along
    of_weights -= (w * of_weights).sum(axis=1, keepdims=True)
    of_weights /= np.where(total == 0, 1, total)
    of_weights[weights == 0] = 0
    # -w times the gradient in x of phi'(u) z.du/dy
    with_ratio = -(sharp * along + slope * 2 * by_y / own)
    with_z = slope * p
    with_x = with_ratio * (p + 2 * u / inside) - slope * 2 * p / inside * (by_y - by_x)
    of_points = x * with_x.sum(axis=0)[:, np.newaxis]
    of_points -= (with_ratio * p).T @ y
    of_points += with_z.T @ z
    return of_points, of_weights

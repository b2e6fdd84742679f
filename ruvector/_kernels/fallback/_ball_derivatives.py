"""Derivatives of the maps that take single rows into a Poincare ball and out of it.

Each takes the gradient of its result back to its argument and to the curvature c. A row whose
gradient is 0 leaves 0, whatever the row holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._ball import largest_radius, points
from ruvector._kernels.spec import BallSpec

__all__ = [
    "conformal_rows",
    "conformal_rows_backward",
    "distances_backward",
    "midpoint_backward",
    "place_backward",
    "to_ball_backward",
]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Angles below which differences of hyperbolic functions come from their series.
_SMALL = 0.03


def _dot(x: _Float64, y: _Float64) -> _Float64:
    products: _Float64 = np.einsum("...d,...d->...", x, y)
    return products


def _are_finite(*numbers: _Float64) -> bool:
    """Return whether every row has finite numbers, so that a gradient of 0 stays 0."""
    return all(bool(np.isfinite(x).all()) for x in numbers)


def _untouched(gradient: _Float64) -> NDArray[np.bool_]:
    touched: NDArray[np.bool_] = np.any(gradient, axis=-1)
    return ~touched


def place_backward(
    rows: _Float64, gradient: _Float64, spec: BallSpec
) -> tuple[_Float64, float]:
    """Take the gradient of points back to the rows that were read as them.

    With the point ``x = f(|v|) v`` it is ``f dx + f'(|v|)/|v| (v.dx) v``.

    Parameters
    ----------
    rows : ndarray of float64, shape (..., d)
        As stored.
    gradient : ndarray of float64, shape (..., d)
        Of the points of `_ball.points`.
    spec : BallSpec
        How rows are read as points.

    Returns
    -------
    gradient : ndarray of float64, shape (..., d)
        Of the rows; the argument itself where nothing was mapped.
    curvature : float
        The gradient of the curvature, rows as they are.
    """
    root, limit = np.sqrt(spec.curvature), largest_radius(spec.curvature)
    square = _dot(rows, rows)
    norm = np.sqrt(square)
    if not spec.tangent and (norm <= limit).all():
        # Every row is its own point.
        return gradient, 0.0
    along = _dot(rows, gradient)
    if spec.tangent:
        angle = root * norm
        factor = np.where(angle > 0, np.tanh(angle) / angle, 1.0)
        change = _change_of_factor(angle, factor)
        by_norm, by_curvature = spec.curvature * change, norm * norm * change / 2
    else:
        factor, by_norm = np.ones_like(norm), np.zeros_like(norm)
        by_curvature = np.zeros_like(norm)
    outside = norm * factor > limit
    if outside.any():
        # Of a row that is shortened, f |v| is 1/sqrt(c) less a constant.
        np.copyto(factor, limit / norm, where=outside)
        np.copyto(by_norm, -limit / (norm * square), where=outside)
        np.copyto(by_curvature, -0.5 * spec.curvature**-1.5 / norm, where=outside)
    result = gradient * factor[..., np.newaxis]
    result += rows * (by_norm * along)[..., np.newaxis]
    lost = _untouched(gradient)
    result[lost] = 0
    return result, float(np.where(lost, 0, by_curvature * along).sum())


def _change_of_factor(t: _Float64, factor: _Float64) -> _Float64:
    """Give ``(1/cosh(t)^2 - tanh(t)/t) / t^2``, where `factor` is tanh(t)/t."""
    square = t * t
    series = -2 / 3 + square * (8 / 15 + square * (-34 / 105 + square * (496 / 2835)))
    return np.where(t < _SMALL, series, (np.cosh(t) ** -2.0 - factor) / square)


def conformal_rows(rows: _Float64, spec: BallSpec) -> _Float64:
    """Give ``[lambda x(v), lambda - 1]`` of stored rows v."""
    x, _, inside = points(rows, spec)
    conformal = 2 / inside
    made = np.empty((*x.shape[:-1], x.shape[-1] + 1))
    np.multiply(x, conformal[..., np.newaxis], out=made[..., :-1])
    np.subtract(conformal, 1, out=made[..., -1])
    return made


def conformal_rows_backward(
    rows: _Float64, gradient: _Float64, spec: BallSpec
) -> tuple[_Float64, float]:
    """Take the gradient of `conformal_rows` back to the rows and the curvature.

    With the gradient (g, e) of ``[lambda x, lambda - 1]`` that of lambda is ``g.x + e``, and
    lambda has the gradient ``lambda^2 c x`` in x and ``lambda^2 |x|^2 / 2`` in c.
    """
    x, square, inside = points(rows, spec)
    conformal = 2 / inside
    of_conformal = _dot(x, gradient[..., :-1]) + gradient[..., -1]
    of_conformal *= conformal * conformal
    of_points = gradient[..., :-1] * conformal[..., np.newaxis]
    of_points += x * (spec.curvature * of_conformal)[..., np.newaxis]
    of_curvature = square * of_conformal
    if not _are_finite(conformal, square):
        lost = _untouched(gradient)
        of_points[lost] = 0
        of_curvature[lost] = 0
    result, curvature = place_backward(rows, of_points, spec)
    return result, curvature + float(of_curvature.sum() / 2)


def distances_backward(
    rows: _Float64, others: _Float64, mass: _Float64, pairs: _Float64, spec: BallSpec
) -> tuple[_Float64, float]:
    """Take the gradient that distances from other points give to points back to their rows.

    Parameters
    ----------
    rows : ndarray of float64, shape (..., d)
        As stored.
    others : ndarray of float64, shape (..., d)
        ``sum h y`` over the other points y, with g, h and u of `_ball_backward`.
    mass, pairs : ndarray of float64, shape (...)
        ``sum h`` and ``sum g u``.
    spec : BallSpec
        How rows are read as points.

    Returns
    -------
    gradient : ndarray of float64, shape (..., d)
        Of the rows.
    curvature : float
        That of the curvature through these points.
    """
    x, square, inside = points(rows, spec)
    by_inside = pairs / inside
    factor = mass + 2 * spec.curvature * by_inside
    gradient = np.multiply(x, factor[..., np.newaxis], out=x)
    gradient -= others
    if not _are_finite(by_inside, square):
        lost = (pairs == 0) & (mass == 0) & _untouched(others)
        gradient[lost] = 0
        by_inside[lost] = 0
    result, curvature = place_backward(rows, gradient, spec)
    return result, curvature + float(by_inside.sum() / spec.curvature)


def to_ball_backward(
    x: _Array, gradient: _Float64, out: _Float64, curvature: float, tangent: bool
) -> float:
    """Take the gradient of ``hyperbolic.to_ball`` back to the rows ``(rows, d)``.

    Returns the gradient of the curvature, rows as they are.
    """
    with np.errstate(all="ignore"):
        spec = BallSpec(curvature, 1.0, tangent)
        result, of_curvature = place_backward(x.astype(np.float64), gradient, spec)
        out[...] = result
        return of_curvature


def midpoint_backward(
    state: _Array, gradient: _Array, out: _Float64, curvature: float, to_tangent: bool
) -> float:
    """Take the gradient of ``hyperbolic.midpoint`` back to the averages.

    Parameters
    ----------
    state : ndarray, shape (rows, d + 1)
        The averages ``[a, b]`` that were finished as ``a / (b + sqrt(b^2 - c|a|^2))``.
    gradient : ndarray, shape (rows, d)
        Of the midpoints, or of their logarithms where `to_tangent`.
    out : ndarray of float64, shape (rows, d + 1)
        Takes the gradient.
    curvature : float
        c.
    to_tangent : bool
        As in ``hyperbolic.midpoint``.

    Returns
    -------
    float
        The gradient of the curvature, averages as they are.
    """
    with np.errstate(all="ignore"):
        above, below = state[:, :-1].astype(np.float64), state[:, -1].astype(np.float64)
        given = gradient.astype(np.float64)
        square = _dot(above, above)
        rest = below * below - curvature * square
        # Where the forward takes the bound of one point alone, the root does not move.
        bound = rest < 1
        root = np.sqrt(np.maximum(rest, 1))
        total = below + root
        point = above / total[:, np.newaxis]
        of_curvature = 0.0
        if to_tangent:
            # s^2 = c|m|^2, and 1 - s^2 = 2 root / total does not cancel.
            s2 = curvature * _dot(point, point)
            s = np.sqrt(s2)
            ratio = np.where(s > 0, np.arctanh(s) / s, 1.0)
            series = 2 / 3 + s2 * (4 / 5 + s2 * (6 / 7 + s2 * (8 / 9)))
            change = np.where(s < _SMALL, series, (total / (2 * root) - ratio) / s2)
            along = _dot(point, given)
            of_curvature = float((change * (s2 / curvature) * along).sum() / 2)
            given = given * ratio[:, np.newaxis]
            given += point * (curvature * change * along)[:, np.newaxis]
        of_total = -_dot(point, given) / total
        of_root = np.where(bound, 0, of_total / root)
        np.divide(given, total[:, np.newaxis], out=out[:, :-1])
        out[:, :-1] -= above * (curvature * of_root)[:, np.newaxis]
        out[:, -1] = of_total + of_root * below
        return of_curvature - float((of_root * square).sum() / 2)

"""Geometry of the Poincare ball: distances, Mobius operations, maps, models and means.

The ball of curvature -c is the set of vectors shorter than ``1 / sqrt(c)``. Every function
takes the curvature as a number whose absolute value is c, anything that NumPy can view as
points or vectors along the last axis, and leading axes that broadcast. The result has the
dtype that the inputs promote to (float32 for lists, integers and bool) and is computed in
float64.

Points are taken as they are: one outside of the ball gives NaN, and one on its boundary is
infinitely far from all others, so that its logarithm is infinite in the entries where it is
not 0. Only what has no limit there is NaN: the sum of opposite points of the boundary, and
means. :func:`project_to_ball` brings points inside. A result that
rounding would put on the boundary is shortened by twice the spacing of its dtype.

References
----------
.. [1] O. Ganea, G. Becigneul, T. Hofmann, "Hyperbolic Neural Networks", 2018,
   arXiv:1805.09112.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _kernels
from ._arrays import Array, floating
from ._checks import curvature_of, finite
from ._hyperbolic import broadcast, largest_norm, map_pairs, map_points, points
from ._hyperbolic_maps import exp_map, expmap0, log_map, logmap0
from ._hyperbolic_means import einstein_midpoint, frechet_mean
from ._rows import RowOutput, rows
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = [
    "conformal_factor",
    "einstein_midpoint",
    "exp_map",
    "expmap0",
    "frechet_mean",
    "log_map",
    "logmap0",
    "lorentz_to_poincare",
    "mobius_add",
    "mobius_scalar_mult",
    "poincare_distance",
    "poincare_to_lorentz",
    "project_to_ball",
]


def project_to_ball(x: ArrayLike, curvature: float, eps: float = 1e-5) -> Array:
    """Shorten vectors that reach the boundary of the ball.

    Parameters
    ----------
    x : array_like, shape (..., d)
        Vectors of any length.
    curvature : float
        Its absolute value is c; not 0.
    eps : float, default 1e-5
        What remains to the boundary; not negative and less than the radius.

    Returns
    -------
    ndarray, shape (..., d)
        Vectors of norm ``1 / sqrt(c) - eps`` at the most (a little less where the dtype
        could not keep that inside the ball), in the direction of `x`.

    Raises
    ------
    InvalidConfigError
        If `curvature` or `eps` is outside its domain.
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import project_to_ball
    >>> project_to_ball([[0.3, 0.4], [3.0, 4.0]], curvature=1.0, eps=0.1)
    array([[0.3 , 0.4 ],
           [0.54, 0.72]], dtype=float32)
    """
    array, c = points(x, "x"), curvature_of(curvature)
    margin = finite(eps, "eps")
    if not 0 <= margin * c**0.5 < 1:
        raise InvalidConfigError(
            f"eps must be at least 0 and less than the radius {c**-0.5:g}, got {eps!r}"
        )
    limit = min(c**-0.5 - margin, largest_norm(c, array))
    return map_points(_kernels.hyperbolic.project_to_ball, array, array.shape, limit)


def poincare_distance(x: ArrayLike, y: ArrayLike, curvature: float) -> Any:
    r"""Return the distance of points along the geodesic between them.

    .. math::

        d(x, y) = \frac{2}{\sqrt c} \operatorname{asinh} \left( \sqrt c\, |x - y| \,
        \big( (1 - c|x|^2) (1 - c|y|^2) \big)^{-1/2} \right)

    Parameters
    ----------
    x, y : array_like, shape (..., d)
        Points; the leading axes broadcast.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (...), or a scalar for two single points
        Distances, accurate for close points as for distant ones.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import poincare_distance
    >>> poincare_distance([0.0, 0.0], [[0.0, 0.5], [0.0, 0.9]], curvature=1.0).round(3)
    array([1.099, 2.944], dtype=float32)
    """
    a, b, c = points(x, "x"), points(y, "y"), curvature_of(curvature)
    return map_pairs(_kernels.hyperbolic.poincare_distance, a, b, ("x", "y"), False, c)


def mobius_add(x: ArrayLike, y: ArrayLike, curvature: float) -> Array:
    """Add points as the ball does: move y by the isometry that takes the origin to x.

    Parameters
    ----------
    x, y : array_like, shape (..., d)
        Points; the leading axes broadcast.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        The Mobius sum, which neither commutes nor associates.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import mobius_add
    >>> mobius_add([0.5, 0.0], [0.5, 0.0], curvature=1.0)
    array([0.8, 0. ], dtype=float32)
    """
    a, b, c = points(x, "x"), points(y, "y"), curvature_of(curvature)
    limit = largest_norm(c, a, b)
    return map_pairs(_kernels.hyperbolic.mobius_add, a, b, ("x", "y"), True, c, limit)


def mobius_scalar_mult(r: ArrayLike, x: ArrayLike, curvature: float) -> Array:
    """Multiply the distance of points from the origin.

    Parameters
    ----------
    r : float or array_like, shape (...)
        Factors; they broadcast with the leading axes of `x`.
    x : array_like, shape (..., d)
        Points.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        The point `r` times as far from the origin on the geodesic through each, in the
        dtype of `x`.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import mobius_scalar_mult
    >>> mobius_scalar_mult(2.0, [0.5, 0.0], curvature=1.0)
    array([0.8, 0. ], dtype=float32)
    """
    factor, array, c = floating(r, "r"), points(x, "x"), curvature_of(curvature)
    lead = broadcast(factor.shape, array.shape[:-1], "r", "x")
    array = np.broadcast_to(array, (*lead, array.shape[-1]))
    factors = rows(np.broadcast_to(factor, lead)[..., np.newaxis], np.dtype(np.float64))
    output = RowOutput(None, array.shape, array)
    matrix = rows(array)
    _kernels.hyperbolic.mobius_scalar_mult(
        factors[:, 0], matrix, output.work.reshape(matrix.shape), c, largest_norm(c, array)
    )
    return output.deliver()


def conformal_factor(x: ArrayLike, curvature: float) -> Any:
    """Return what the metric at a point multiplies Euclidean lengths by.

    Parameters
    ----------
    x : array_like, shape (..., d)
        Points.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (...), or a scalar for one point
        ``2 / (1 - c|x|^2)``.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import conformal_factor
    >>> conformal_factor([[0.0, 0.0], [0.0, 0.5]], curvature=1.0).round(4)
    array([2.    , 2.6667], dtype=float32)
    """
    array, c = points(x, "x"), curvature_of(curvature)
    return map_points(_kernels.hyperbolic.conformal_factor, array, array.shape[:-1], c)


def poincare_to_lorentz(x: ArrayLike, curvature: float) -> Array:
    """Map points of the ball to the hyperboloid.

    Parameters
    ----------
    x : array_like, shape (..., d)
        Points of the ball.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d + 1)
        Points ``(t, s)`` with ``t^2 - |s|^2 = 1/c`` and ``t > 0``, t first.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import poincare_to_lorentz
    >>> poincare_to_lorentz([0.0, 0.5], curvature=1.0).round(4)
    array([1.6667, 0.    , 1.3333], dtype=float32)
    """
    array, c = points(x, "x"), curvature_of(curvature)
    shape = (*array.shape[:-1], array.shape[-1] + 1)
    return map_points(_kernels.hyperbolic.poincare_to_lorentz, array, shape, c)


def lorentz_to_poincare(x: ArrayLike, curvature: float) -> Array:
    """Map points of the hyperboloid to the ball, the inverse of :func:`poincare_to_lorentz`.

    Parameters
    ----------
    x : array_like, shape (..., d + 1)
        Points ``(t, s)`` of the hyperboloid; one with t not positive gives NaN.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        ``s / (1 + sqrt(c) t)``.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If `x` has no axis, or that is empty, or it is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import lorentz_to_poincare
    >>> lorentz_to_poincare([5 / 3, 0.0, 4 / 3], curvature=1.0).round(4)
    array([0. , 0.5], dtype=float32)
    """
    array, c = points(x, "x"), curvature_of(curvature)
    if array.shape[-1] == 0:
        raise DimensionMismatchError(f"x must have shape (..., d + 1), got {array.shape}")
    shape = (*array.shape[:-1], array.shape[-1] - 1)
    limit = largest_norm(c, array)
    return map_points(_kernels.hyperbolic.lorentz_to_poincare, array, shape, c, limit)

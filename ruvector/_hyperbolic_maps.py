"""Exponential and logarithmic maps of the Poincare ball, for :mod:`ruvector.hyperbolic`."""

from __future__ import annotations

from numpy.typing import ArrayLike

from . import _kernels
from ._arrays import Array
from ._checks import curvature_of
from ._hyperbolic import largest_norm, map_pairs, map_points, points

__all__ = ["exp_map", "expmap0", "log_map", "logmap0"]


def exp_map(base: ArrayLike, tangent: ArrayLike, curvature: float) -> Array:
    r"""Follow the geodesic that leaves a point along a tangent vector.

    .. math::

        \exp_x(v) = x \oplus \tanh \left( \frac{\sqrt c\, \lambda_x |v|}{2} \right)
        \frac{v}{\sqrt c\, |v|}, \qquad \lambda_x = \frac{2}{1 - c|x|^2}

    Parameters
    ----------
    base : array_like, shape (..., d)
        Points.
    tangent : array_like, shape (..., d)
        Tangent vectors at them; the leading axes broadcast.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        Points at the distance ``lambda_x |v|`` from the base.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.hyperbolic import exp_map, log_map
    >>> base, point = np.array([0.0, 0.99]), np.array([0.6, -0.5])
    >>> exp_map(base, log_map(base, point, curvature=1.0), curvature=1.0).round(6)
    array([ 0.6, -0.5])
    """
    x, v, c = points(base, "base"), points(tangent, "tangent"), curvature_of(curvature)
    kernel, limit = _kernels.hyperbolic.exp_map, largest_norm(c, x, v)
    return map_pairs(kernel, x, v, ("base", "tangent"), True, c, limit)


def log_map(base: ArrayLike, point: ArrayLike, curvature: float) -> Array:
    r"""Return the tangent vector that leads from one point to another.

    .. math::

        \log_x(y) = \frac{2}{\sqrt c\, \lambda_x} \operatorname{artanh}(\sqrt c\, |u|)
        rac{u}{|u|}, \qquad u = -x \oplus y

    Parameters
    ----------
    base : array_like, shape (..., d)
        Points.
    point : array_like, shape (..., d)
        The points to reach; the leading axes broadcast.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        Tangent vectors at `base`, the inverse of :func:`exp_map`.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import log_map
    >>> log_map([0.5, 0.0], [0.0, 0.0], curvature=1.0).round(4)
    array([-0.412,  0.   ], dtype=float32)
    """
    x, y, c = points(base, "base"), points(point, "point"), curvature_of(curvature)
    return map_pairs(_kernels.hyperbolic.log_map, x, y, ("base", "point"), True, c)


def expmap0(tangent: ArrayLike, curvature: float) -> Array:
    """Map tangent vectors at the origin to points: :func:`exp_map` with the origin as base.

    Parameters
    ----------
    tangent : array_like, shape (..., d)
        Vectors of any length.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        Points at the distance ``2 |v|`` from the origin, ``tanh(sqrt(c) |v|) / sqrt(c)``
        in norm.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If `tangent` has no axis or is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import expmap0
    >>> expmap0([[0.0, 0.0], [3.0, 4.0]], curvature=1.0).round(4)
    array([[0.    , 0.    ],
           [0.5999, 0.7999]], dtype=float32)
    """
    array, c = points(tangent, "tangent"), curvature_of(curvature)
    limit = largest_norm(c, array)
    return map_points(_kernels.hyperbolic.expmap0, array, array.shape, c, limit)


def logmap0(point: ArrayLike, curvature: float) -> Array:
    """Map points to tangent vectors at the origin, the inverse of :func:`expmap0`.

    Parameters
    ----------
    point : array_like, shape (..., d)
        Points.
    curvature : float
        Its absolute value is c; not 0.

    Returns
    -------
    ndarray, shape (..., d)
        Tangent vectors at the origin, of half the distance of each point from it.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite.
    DimensionMismatchError, TypeError
        If `point` has no axis or is not real.

    Examples
    --------
    >>> from ruvector.hyperbolic import logmap0
    >>> logmap0([0.0, 0.5], curvature=1.0).round(4)
    array([0.    , 0.5493], dtype=float32)
    """
    array, c = points(point, "point"), curvature_of(curvature)
    return map_points(_kernels.hyperbolic.logmap0, array, array.shape, c)

"""Means of points of the Poincare ball, for :mod:`ruvector.hyperbolic`."""

from __future__ import annotations

import warnings
from math import prod

import numpy as np
from numpy.typing import ArrayLike

from . import _kernels
from ._arrays import Array, floating
from ._checks import curvature_of, finite, integer
from ._hyperbolic import broadcast, largest_norm
from ._rows import RowOutput, at_least, rows
from .errors import DimensionMismatchError, EmptyInputError, InvalidConfigError

__all__ = ["einstein_midpoint", "frechet_mean", "warn_unless_converged"]


def einstein_midpoint(
    points: ArrayLike, curvature: float, weights: ArrayLike | None = None
) -> Array:
    r"""Return the weighted midpoint of points, in closed form.

    .. math::

        m = \frac{r}{1 + \sqrt{1 - c|r|^2}}, \qquad
        r = \frac{\sum_i w_i \lambda_i x_i}{\sum_i w_i (\lambda_i - 1)}, \qquad
        \lambda_i = \frac{2}{1 - c|x_i|^2}

    It moves along with every isometry of the ball; it is not the Frechet mean, and cheaper.

    Parameters
    ----------
    points : array_like, shape (..., n, d)
        Points, at least one.
    curvature : float
        Its absolute value is c; not 0.
    weights : array_like, shape (..., n), optional
        Not negative, of any sum; all equal by default. The leading axes broadcast. A point
        of weight 0 takes no part, whatever it holds.

    Returns
    -------
    ndarray, shape (..., d)
        Midpoints, in the dtype of `points`; 0 where all weights are 0.

    Raises
    ------
    InvalidConfigError
        If `curvature` is 0 or not finite, or a weight is negative.
    EmptyInputError
        If there are no points.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    References
    ----------
    .. [1] C. Gulcehre et al., "Hyperbolic Attention Networks", 2018, arXiv:1805.09786.
    .. [2] R. Shimizu, Y. Mukuta, T. Harada, "Hyperbolic Neural Networks++", 2021,
       arXiv:2006.08210.

    Examples
    --------
    >>> from ruvector.hyperbolic import einstein_midpoint
    >>> einstein_midpoint([[0.0, 0.0], [0.0, 0.8]], curvature=1.0)
    array([0. , 0.5], dtype=float32)
    """
    c = curvature_of(curvature)
    array, sets, shares, output = _prepared(points, weights)
    width = array.shape[-1]
    _kernels.hyperbolic.einstein_midpoint(
        sets, shares, output.work.reshape(*shares.shape[:2], width), c, largest_norm(c, array)
    )
    return output.deliver()


def frechet_mean(
    points: ArrayLike,
    curvature: float,
    weights: ArrayLike | None = None,
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
) -> Array:
    r"""Return the point of least weighted sum of squared distances.

    Parameters
    ----------
    points : array_like, shape (..., n, d)
        Points, at least one.
    curvature : float
        Its absolute value is c; not 0.
    weights : array_like, shape (..., n), optional
        Not negative, of any sum; all equal by default. The leading axes broadcast. A point
        of weight 0 takes no part, whatever it holds.
    tol : float, default 1e-6
        How near to the mean is near enough: a distance, in units of ``1 / sqrt(c)``.
    max_iter : int, default 500
        After how many steps to stop in any case.

    Returns
    -------
    ndarray, shape (..., d)
        Means, in the dtype of `points`; 0 where all weights are 0.

    Warns
    -----
    RuntimeWarning
        If a mean is not known to be within `tol` after `max_iter` steps.

    Raises
    ------
    InvalidConfigError
        If `curvature`, `tol` or `max_iter` is outside its domain, or a weight is negative.
    EmptyInputError
        If there are no points.
    DimensionMismatchError, TypeError
        If shapes do not fit together, or an input is not real.

    References
    ----------
    .. [1] A. Lou et al., "Differentiating through the Frechet Mean", 2020,
       arXiv:2003.00335.

    Examples
    --------
    >>> from ruvector.hyperbolic import frechet_mean
    >>> frechet_mean([[0.0, 0.0], [0.0, 0.8]], curvature=1.0).round(6)
    array([0. , 0.5], dtype=float32)
    """
    c = curvature_of(curvature)
    tolerance, steps = finite(tol, "tol", positive=True), integer(max_iter, "max_iter", 1)
    array, sets, shares, output = _prepared(points, weights)
    means = output.work.reshape(*shares.shape[:2], array.shape[-1])
    left = _kernels.hyperbolic.frechet_mean(
        sets, shares, means, c, tolerance, steps, largest_norm(c, array)
    )
    warn_unless_converged(left, tolerance, steps)
    return output.deliver()


def warn_unless_converged(left: float, tol: float, max_iter: int) -> None:
    """Warn the caller of a public function that a Frechet mean is still on its way."""
    if left > tol:
        warnings.warn(
            f"the Frechet mean has not converged after {max_iter} steps: it may be {left:.1e} "
            f"away, where tol is {tol:.1e}",
            RuntimeWarning,
            stacklevel=3,
        )


def _prepared(
    points: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array, RowOutput]:
    """Return points, points ``(sets, n, d)``, weights ``(sets, m, n)`` and the output."""
    array = at_least(2, floating(points, "points"), "points", "(..., n, d)")
    *lead, n, width = array.shape
    if n == 0:
        raise EmptyInputError(f"points must hold at least one point, got shape {array.shape}")
    given = np.ones(n, np.float32) if weights is None else floating(weights, "weights")
    given = at_least(1, given, "weights", "(..., n)")
    if given.shape[-1] != n:
        raise DimensionMismatchError(
            f"weights must have {n} entries on the last axis, one per point, "
            f"got {given.shape[-1]}"
        )
    shape = broadcast(tuple(lead), given.shape[:-1], "points", "weights")
    output = RowOutput(None, (*shape, width), array)
    shares = rows(np.broadcast_to(given, (*shape, n)), np.dtype(np.float64))
    if (shares < 0).any():
        raise InvalidConfigError(f"weights must not be negative, got {shares.min()}")
    if prod(lead) == 1:
        # One set of points for all rows of weights.
        return array, rows(array).reshape(1, n, width), shares[np.newaxis], output
    array = np.broadcast_to(array, (*shape, n, width))
    sets = rows(array).reshape(len(shares), n, width)
    return array, sets, shares[:, np.newaxis], output

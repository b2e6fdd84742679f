"""The matrix products of a linear map and of its gradient, by the compiled projection."""

from __future__ import annotations

import numpy as np

from .. import _config, _kernels
from .._arrays import Array

__all__ = ["apply", "outer"]


def apply(x: Array, weight: Array) -> Array:
    """Return ``x @ weight.T`` for rows ``(n, a)`` and a weight ``(b, a)``, both contiguous."""
    out = np.empty((len(x), len(weight)), weight.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        _kernels.graph.project(x, weight, out, _config.current_threads())
    return out


def outer(left: Array, right: Array) -> Array:
    """Return ``left.T @ right`` for rows ``(n, b)`` and ``(n, a)`` of one dtype."""
    return apply(np.ascontiguousarray(left.T), np.ascontiguousarray(right.T))

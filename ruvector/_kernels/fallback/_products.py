"""Matrix products and sums of gradients, in which what has no weight takes no part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["add_summed", "product"]

_Array = NDArray[Any]


def add_summed(target: _Array, part: _Array) -> None:
    """Add an array to another, summed over the axes along which that one has length 1."""
    axes = tuple(
        axis for axis in range(part.ndim) if target.shape[axis] == 1 != part.shape[axis]
    )
    target += part.sum(axis=axes, keepdims=True) if axes else part


def product(left: _Array, right: _Array) -> _Array:
    """Multiply matrices; a zero on the left takes no part, even beside NaN or infinity."""
    total: _Array = np.matmul(left, right)
    if np.isfinite(total).all():
        return total
    finite = np.isfinite(right)
    if finite.all():
        return total
    total = np.matmul(left, np.where(finite, right, 0))
    dtype = total.dtype
    above, below = (left > 0).astype(dtype), (left < 0).astype(dtype)
    up, down = (right == np.inf).astype(dtype), (right == -np.inf).astype(dtype)
    total[above @ up + below @ down > 0] += np.inf
    total[above @ down + below @ up > 0] -= np.inf
    total[(left != 0).astype(dtype) @ np.isnan(right).astype(dtype) > 0] = np.nan
    return total

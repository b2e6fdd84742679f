"""The largest scores of every row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest"]


def largest(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Find the columns of the k largest scores, largest first, equal ones in their order."""
    count = scores.shape[-1]
    if k >= count:
        return np.argsort(-scores, axis=-1, kind="stable")
    limit = np.partition(scores, count - k, axis=-1)[..., count - k, np.newaxis]
    chosen = scores >= limit
    if np.count_nonzero(chosen) > k * (scores.size // count):
        above = scores > limit
        level = scores == limit
        places = k - np.count_nonzero(above, axis=-1, keepdims=True)
        chosen = above | (level & (np.cumsum(level, axis=-1) <= places))
    columns = np.nonzero(chosen)[-1].reshape(*scores.shape[:-1], k)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(columns, order, axis=-1)

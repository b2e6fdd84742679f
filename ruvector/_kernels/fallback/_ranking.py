"""The largest scores of every row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["largest"]


def largest(scores: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Find the columns of the k largest scores, largest first, equal ones in their order."""
    count = scores.shape[-1]
    ranks = -scores
    if k >= count:
        return np.argsort(ranks, axis=-1, kind="stable")
    # From below: a selection among hidden keys, which are equal, takes ten times longer.
    limit = np.partition(ranks, k - 1, axis=-1)[..., k - 1, np.newaxis]
    chosen = ranks <= limit
    tied = np.count_nonzero(chosen, axis=-1) > k
    if tied.any():
        own, limit = ranks[tied], limit[tied]
        above = own < limit
        places = k - np.count_nonzero(above, axis=-1, keepdims=True)
        # Where less than k keys are not hidden, the first k columns hold enough of the hidden.
        reach = k if (limit == np.inf).all() else count
        level = own[:, :reach] == limit
        above[:, :reach] |= level & (np.cumsum(level, axis=-1, dtype=np.int32) <= places)
        chosen[tied] = above
    columns = np.nonzero(chosen)[-1].reshape(*scores.shape[:-1], k)
    order = np.argsort(np.take_along_axis(ranks, columns, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(columns, order, axis=-1)

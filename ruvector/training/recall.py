"""How often the right positive is among the first that an anchor finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, compute_dtype, contiguous_rows, floating, promote
from .._checks import integer
from .._rows import check_width
from .._weights import top_k_keys
from ..errors import DimensionMismatchError, EmptyInputError

__all__ = ["recall_at_k"]

# Anchors that are ranked at a time.
_BLOCK = 1024


def recall_at_k(
    anchors: ArrayLike, positives: ArrayLike, k: int | Sequence[int] = (1, 5)
) -> dict[int, float]:
    """Return how often the positive of an anchor is among the k nearest, by cosine.

    Parameters
    ----------
    anchors : array_like, shape (n, d)
    positives : array_like, shape (m, d)
        At least as many, among which every anchor ranks; row i is the right one for anchor i,
        any more are there to be told from it.
    k : int or sequence of int, default (1, 5)

    Returns
    -------
    dict of int to float
        The recall at each k, from 0 to 1. Of positives that are equally near the first counts
        as the nearest.

    Raises
    ------
    DimensionMismatchError
        If shapes do not fit together.
    EmptyInputError
        If there are no anchors.
    InvalidConfigError
        If a k is not an integer of at least 1.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    The attention engine streams over the positives, so memory does not grow with ``n m``.

    Examples
    --------
    >>> from ruvector.training import recall_at_k
    >>> recall_at_k([[1.0, 0.0], [1.0, 0.2]], [[1.0, 0.1], [0.0, 1.0]], (1, 2))
    {1: 0.5, 2: 1.0}
    """
    counts = [integer(x, "k", 1) for x in (k if isinstance(k, Sequence) else [k])]
    first, second = floating(anchors, "anchors"), floating(positives, "positives")
    for name, array in (("anchors", first), ("positives", second)):
        if array.ndim != 2:
            raise DimensionMismatchError(f"{name} must have shape (n, d), got {array.shape}")
    check_width(second, "positives", first, "anchors")
    if not first.size:
        raise EmptyInputError(f"anchors must not be empty, got shape {first.shape}")
    if len(second) < len(first):
        raise DimensionMismatchError(
            f"positives must hold {len(first)} vectors, one per anchor, got {len(second)}"
        )
    dtype = compute_dtype(promote(first, second))
    pool = _unit(second, dtype)
    found = np.zeros(len(counts))
    most = min(max(counts), len(pool))
    for start in range(0, len(first), _BLOCK):
        block = _unit(first[start : start + _BLOCK], dtype)
        indices, _ = top_k_keys(block, pool, most, scale=1.0)
        hits = indices == np.arange(start, start + len(block))[:, np.newaxis]
        found += [hits[:, :count].any(axis=1).sum() for count in counts]
    return {count: float(hit) / len(first) for count, hit in zip(counts, found, strict=True)}


def _unit(x: Array, dtype: np.dtype) -> Array:
    """Scale vectors to unit length; a zero one, which is near to nothing, stays."""
    array = contiguous_rows(x, dtype)
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return array / np.where(norms > 0, norms, 1)

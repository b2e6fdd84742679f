"""What is appended to a cache and taken out of it, checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import FLOAT32, FLOAT64, Array, contiguous_rows, integers, vectors, view
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["chosen_rows", "raise_unfit", "rows_to_store"]


def rows_to_store(x: ArrayLike, name: str, width: int, dtype: str) -> Array:
    """Return rows, of shape (n, width), that a cache of a storage type is to take."""
    rows = vectors(x, name)
    if rows.ndim == 1 and len(rows) == width:
        rows = rows[np.newaxis]
    if rows.shape == (0, 0):
        rows = rows.reshape(0, width)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DimensionMismatchError(
            f"{name} must have shape ({width},) or (n, {width}), got {rows.shape}"
        )
    if rows.dtype != FLOAT64:
        return contiguous_rows(rows, rows.dtype)
    narrow = contiguous_rows(rows, FLOAT32)
    infinite = np.isinf(narrow)
    raise_unfit(None if np.isinf(rows[infinite]).all() else name, dtype)
    return narrow


def raise_unfit(name: str | None, dtype: str) -> None:
    """Raise for the array that holds what a storage type does not, None where neither does."""
    if name is not None:
        raise InvalidConfigError(f"{name} must hold finite numbers within the range of {dtype}")


def chosen_rows(rows: ArrayLike, held: int) -> Array:
    """Return as bool which of the rows held are meant, by their indices or as bool."""
    array, _ = view(rows, "rows")
    if array.dtype == np.bool_:
        if array.shape != (held,):
            raise DimensionMismatchError(
                f"rows must have shape ({held},) where bool, got {array.shape}"
            )
        return array
    indices = integers(rows, "rows")
    if indices.ndim != 1:
        raise DimensionMismatchError(f"rows must have one axis, got {indices.shape}")
    if indices.size and not 0 <= indices.min() <= indices.max() < held:
        raise InvalidConfigError(
            f"rows must be indices from 0 to {held - 1}, got {indices.min()} to {indices.max()}"
        )
    chosen = np.zeros(held, np.bool_)
    chosen[indices] = True
    return chosen

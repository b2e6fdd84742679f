"""Vectors of nodes and features of edges as a caller gives them, checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, floating
from ..errors import DimensionMismatchError
from ._inputs import Inputs

__all__ = ["checked_edges", "checked_features", "checked_nodes"]


def checked_nodes(x: ArrayLike, name: str, dim: int) -> Array:
    """Return vectors of nodes as a storage array ``(n, dim)``."""
    array = floating(x, name)
    if array.ndim != 2 or array.shape[1] != dim:
        raise DimensionMismatchError(f"{name} must have shape (n, {dim}), got {array.shape}")
    return array


def checked_edges(edge_features: ArrayLike | None, shape: tuple[int, int]) -> Array | None:
    """Return features as a storage array ``(E, edge_dim)``, None where there are none."""
    if edge_features is None:
        return None
    array = floating(edge_features, "edge_features")
    if shape[1] == 1 and array.ndim == 1:
        array = array[:, np.newaxis]
    if array.shape != shape:
        raise DimensionMismatchError(
            f"edge_features must have shape {shape}, got {array.shape}"
        )
    return array if shape[1] else None


def checked_features(
    edge_features: ArrayLike | None, inputs: Inputs, edge_dim: int
) -> Array | None:
    """Return features as a view ``(B, m, n, edge_dim)``, None where there are none."""
    if edge_features is None:
        return None
    array = floating(edge_features, "edge_features")
    wanted = (*inputs.query.shape[:2], inputs.keys.shape[1], edge_dim)
    fits = 2 <= array.ndim <= 2 + len(inputs.leading)
    if not fits or array.shape != wanted[4 - array.ndim :]:
        shapes = [wanted[4 - axes :] for axes in range(2, 3 + len(inputs.leading))]
        raise DimensionMismatchError(
            f"edge_features must have shape {' or '.join(map(str, shapes))}, got {array.shape}"
        )
    return np.broadcast_to(array, wanted) if edge_dim else None

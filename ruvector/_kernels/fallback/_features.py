"""Features of keys and queries in NumPy, as linear attention sums and reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.spec import FeatureSpec

__all__ = ["key_features", "query_features", "visible"]

_Array = NDArray[Any]


def _projected(rows: _Array, features: FeatureSpec) -> tuple[_Array, _Array]:
    """Give ``projection @ (scale * x)`` of stored rows, and the scaled rows."""
    x = _storage.widen(rows)
    x = x * x.dtype.type(features.scale)
    return np.matmul(x, features.projection.T), x


def _half_norms(x: _Array) -> _Array:
    norms: _Array = 0.5 * np.einsum("...d,...d->...", x, x)
    return norms


def visible(rows: slice, bias: _Array | None) -> tuple[Any, _Array | None]:
    """Give an index of the visible keys among some, and their bias where there is one."""
    if bias is None:
        return rows, None
    own = bias[rows]
    seen = np.flatnonzero(own != -np.inf)
    return seen + rows.start, own[seen]


def key_features(key: _Array, bias: _Array | None, features: FeatureSpec) -> _Array:
    """Give the exponents of exponential features, and other features themselves."""
    y, x = _projected(key, features)
    if features.kernel == "softmax":
        y -= _half_norms(x)[..., np.newaxis]
        if bias is not None:
            y += bias[:, np.newaxis]
        return y
    _activate(y, features)
    if bias is not None:
        y *= np.exp(bias)[:, np.newaxis]
    return y


def _activate(y: _Array, features: FeatureSpec) -> None:
    if features.kernel == "relu":
        np.maximum(y, 0, out=y)
        y += y.dtype.type(features.epsilon)
        return
    low = np.exp(np.minimum(y, 0))
    np.maximum(y, 0, out=y)
    y += low


def query_features(
    query: _Array, features: FeatureSpec, with_shift: bool
) -> tuple[_Array, _Array | None]:
    """Give the features of queries, and what to add to L because of their stabiliser."""
    y, x = _projected(query, features)
    if features.kernel != "softmax":
        _activate(y, features)
        return y, None
    top = y.max(axis=-1, keepdims=True)
    y -= top
    np.exp(y, out=y)
    y += y.dtype.type(features.epsilon)
    return y, top[..., 0] - _half_norms(x) if with_shift else None

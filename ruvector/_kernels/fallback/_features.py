"""Features of keys and queries in NumPy, as linear attention uses them, and their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.spec import FeatureSpec

__all__ = [
    "key_features",
    "key_gradients",
    "query_features",
    "query_gradients",
    "through_key_features",
    "visible",
]

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
    # Faster than the maximum over short rows.
    top = np.take_along_axis(y, y.argmax(axis=-1)[..., np.newaxis], axis=-1)
    y -= top
    np.exp(y, out=y)
    y += y.dtype.type(features.epsilon)
    return y, top[..., 0] - _half_norms(x) if with_shift else None


def query_gradients(
    query: _Array,
    phi: _Array,
    grad_phi: _Array,
    total: _Array,
    grad_lse: _Array | None,
    features: FeatureSpec,
    grad_projection: _Array | None,
) -> _Array:
    """Give the gradients of queries ``(H, n, D)``, of features that `query_features` gave.

    `grad_phi` is overwritten, as is `phi`; `total` (H, n, 1) is its sum over the features.
    What comes to the projection is added to `grad_projection`.
    """
    dtype = phi.dtype
    x = _storage.widen(query) * dtype.type(features.scale)
    if features.kernel == "softmax":
        eps = dtype.type(features.epsilon)
        # The maximum divides what epsilon is added to.
        place = phi.argmax(axis=-1)[..., np.newaxis]
        phi -= eps
        grad_phi *= phi
        top = np.take_along_axis(grad_phi, place, axis=-1)
        np.put_along_axis(grad_phi, place, top + eps * total, axis=-1)
    elif features.kernel == "relu":
        grad_phi *= phi > dtype.type(features.epsilon)
    else:
        grad_phi *= np.minimum(phi, 1)
    gradient = _through_projection(x, grad_phi, features, grad_projection)
    if features.kernel == "softmax" and grad_lse is not None:
        gradient -= grad_lse[..., np.newaxis] * x
    gradient *= dtype.type(features.scale)
    return gradient


def through_key_features(
    phi: _Array, grad_phi: _Array, bias: _Array | None, features: FeatureSpec
) -> _Array:
    """Turn gradients of key features into those of what the projection gives, in place.

    `phi` are the exponentials of exponential features, and what `key_features` gives of others.
    Returns the gradients of the bias ``(H, n)``.
    """
    if features.kernel == "softmax":
        grad_phi *= phi
        total: _Array = grad_phi.sum(axis=-1)
        return total
    total = np.einsum("hnm,hnm->hn", grad_phi, phi)
    factor = phi.dtype.type(1) if bias is None else np.exp(bias)[:, np.newaxis]
    if features.kernel == "relu":
        grad_phi *= phi > phi.dtype.type(features.epsilon) * factor
        grad_phi *= factor
    else:
        grad_phi *= np.minimum(phi, factor)
    return total


def key_gradients(
    key: _Array,
    grad_y: _Array,
    total: _Array,
    features: FeatureSpec,
    grad_projection: _Array | None,
) -> _Array:
    """Give the gradients of keys ``(H, n, D)`` from those that `through_key_features` made.

    `total` (H, n) is what that returned.
    """
    dtype = grad_y.dtype
    x = _storage.widen(key) * dtype.type(features.scale)
    gradient = _through_projection(x, grad_y, features, grad_projection)
    if features.kernel == "softmax":
        gradient -= total[..., np.newaxis] * x
    gradient *= dtype.type(features.scale)
    return gradient


def _through_projection(
    x: _Array, grad_y: _Array, features: FeatureSpec, grad_projection: _Array | None
) -> _Array:
    if grad_projection is not None:
        grad_projection += np.matmul(grad_y.swapaxes(1, 2), x).sum(axis=0)
    gradient: _Array = np.matmul(grad_y, features.projection)
    return gradient

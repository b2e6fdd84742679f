"""Rows of one batch entry and their sums, of which gradients of linear attention are made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._features import (
    key_features,
    key_gradients,
    through_key_features,
    visible,
)
from ruvector._kernels.fallback._online import zero_point
from ruvector._kernels.fallback._sums import block_rows, row_blocks
from ruvector._kernels.spec import FeatureSpec

__all__ = ["Heads", "Suffix", "augmented", "gradients_of_keys", "put_keys", "row_gradients"]

_Array = NDArray[Any]


class Heads(NamedTuple):
    """The arrays of some heads of one batch entry; those of ``linear_backward`` without B.

    ``bias_total`` (Lk,) and ``projection_total`` (M, D) are of float64, or None where they are
    not wanted.
    """

    query: _Array
    key: _Array
    value: _Array
    bias: _Array | None
    out: _Array
    grad_out: _Array
    grad_lse: _Array | None
    grad_query: _Array
    grad_key: _Array
    grad_value: _Array
    bias_total: _Array | None
    projection_total: _Array | None


class Suffix(NamedTuple):
    """Sums over the queries that see some keys.

    Attributes
    ----------
    total : ndarray of float64, shape (H, M, Dv + 1)
        ``sum_i phi(q_i) g_i^T``, relative to the maximum `top` of the keys' exponents.
    share : ndarray of float64, shape (H, Dv + 1)
        ``epsilon sum_i |phi(q_i)|_1 g_i``; 0 where features contain epsilon.
    top : ndarray of float64, shape (H,)
    grad_top : ndarray of float64, shape (H,)
        Gradient of that maximum.
    """

    total: _Array
    share: _Array
    top: _Array
    grad_top: _Array


def augmented(values: _Array) -> _Array:
    """Give ``[v, 1]``."""
    wide = np.ones((*values.shape[:2], values.shape[2] + 1), values.dtype)
    wide[..., :-1] = values
    return wide


def row_gradients(heads: Heads, rows: slice, norm: _Array) -> tuple[_Array, _Array | None]:
    """Give g and dL of some queries with the sums `norm` (H, n, 1); 0 where nothing is seen."""
    gradient = _storage.widen(heads.grad_out[:, rows])
    out = _storage.widen(heads.out[:, rows])
    g = np.empty((*gradient.shape[:2], gradient.shape[2] + 1), norm.dtype)
    g[..., :-1] = gradient
    np.negative(np.einsum("hnd,hnd->hn", gradient, out), out=g[..., -1])
    grad_lse = None
    if heads.grad_lse is not None:
        grad_lse = np.where(norm[..., 0] == 0, 0, heads.grad_lse[:, rows])
        g[..., -1] += grad_lse
    g /= norm
    np.copyto(g, 0, where=norm == 0)
    return g, grad_lse


def put_keys(
    heads: Heads,
    seen: Any,
    grad_y: _Array,
    grad_bias: _Array,
    grad_value: _Array,
    features: FeatureSpec,
) -> None:
    """Write the gradients of some keys, from those of the projected keys `grad_y`."""
    gradient = key_gradients(
        heads.key[:, seen], grad_y, grad_bias, features, heads.projection_total
    )
    for target, made in ((heads.grad_key, gradient), (heads.grad_value, grad_value)):
        stored = np.empty(made.shape, target.dtype)
        _storage.store(stored, made)
        target[:, seen] = stored
    if heads.bias_total is not None:
        heads.bias_total[seen] += grad_bias.sum(axis=0)


def gradients_of_keys(heads: Heads, stop: int, suffix: Suffix, features: FeatureSpec) -> None:
    """Write the gradients of the keys before `stop`, which the queries of `suffix` all see."""
    exponential = features.kernel == "softmax"
    highest: list[tuple[float, int, int]] = [(-np.inf, 0, 0)] * len(heads.key)
    dtype = _storage.compute_dtype(heads.key)
    total, share = suffix.total.astype(dtype), suffix.share.astype(dtype)
    origin = zero_point(suffix.top).astype(dtype)[:, np.newaxis, np.newaxis]
    for rows in row_blocks(0, stop, block_rows(len(heads.key), features)):
        seen, bias = visible(rows, heads.bias)
        phi = key_features(heads.key[:, seen], bias, features)
        if not phi.shape[1]:
            continue
        if exponential:
            _find_highest(highest, phi, rows, seen)
            phi -= origin
            np.exp(phi, out=phi)
        values = augmented(_storage.widen(heads.value[:, seen]))
        grad_value = np.matmul(phi, total[..., :-1])
        grad_value += share[:, np.newaxis, :-1]
        grad_phi = np.matmul(values, total.swapaxes(1, 2))
        grad_bias = through_key_features(phi, grad_phi, bias, features)
        put_keys(heads, seen, grad_phi, grad_bias, grad_value, features)
    if exponential:
        for h, (top, row, feature) in enumerate(highest):
            if top > -np.inf:
                _add_maximum(heads, h, row, feature, suffix.grad_top[h], features)


def _find_highest(
    highest: list[tuple[float, int, int]], exponents: _Array, rows: slice, seen: Any
) -> None:
    """Keep the largest exponent of each head, its key and its feature; the first of several."""
    flat = exponents.reshape(len(exponents), -1)
    for h, place in enumerate(flat.argmax(axis=1)):
        if flat[h, place] > highest[h][0]:
            row, feature = divmod(int(place), exponents.shape[2])
            row = rows.start + row if isinstance(seen, slice) else int(seen[row])
            highest[h] = float(flat[h, place]), row, feature


def _add_maximum(
    heads: Heads, head: int, row: int, feature: int, grad_top: float, features: FeatureSpec
) -> None:
    """Give the gradient of a head's largest exponent to the key that attains it."""
    x = features.scale * _storage.widen(heads.key[head, row])
    direction = features.projection[feature] - x
    target = heads.grad_key[head, row]
    _storage.store(target, _storage.widen(target) + grad_top * features.scale * direction)
    if heads.bias_total is not None:
        heads.bias_total[row] += grad_top
    if heads.projection_total is not None:
        heads.projection_total[feature] += grad_top * x

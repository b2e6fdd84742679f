"""The sums of linear attention in NumPy, and its blocks of positions under the causal rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._features import key_features, visible
from ruvector._kernels.fallback._online import zero_point
from ruvector._kernels.spec import FeatureSpec, LinearState

__all__ = [
    "Block",
    "absorb_keys",
    "add_state",
    "block_norm",
    "block_rows",
    "empty_state",
    "fold_block",
    "parts",
    "row_blocks",
    "weigh_block",
]

_Array = NDArray[Any]

# Features in one tile.
_FEATURES = 1 << 18


def parts(x: _Array, features: FeatureSpec) -> Iterator[tuple[int, slice]]:
    """Walk batch entries and as many heads at a time as a tile has room for."""
    batch, heads, rows = x.shape[:3]
    step = max(1, _FEATURES // max(1, rows * len(features.projection)))
    for b in range(batch):
        for h in range(0, heads, step):
            yield b, slice(h, min(h + step, heads))


def row_blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    """Walk rows in blocks of a size."""
    return (slice(i, min(i + size, stop)) for i in range(start, stop, size))


def block_rows(heads: int, features: FeatureSpec) -> int:
    """Give the rows of some heads whose features fill a tile."""
    return max(1, _FEATURES // max(1, heads * len(features.projection)))


def empty_state(key: _Array, width: int, features: FeatureSpec) -> LinearState:
    """Give the state of no keys for the heads of one batch entry."""
    heads, m = len(key), len(features.projection)
    return LinearState(
        np.zeros((heads, m, width)),
        np.zeros((heads, m)),
        np.full(heads, -np.inf if features.kernel == "softmax" else 0.0),
        np.zeros((heads, width)),
        np.zeros(heads, np.int64),
    )


def absorb_keys(
    key: _Array,
    value: _Array,
    bias: _Array | None,
    state: LinearState,
    features: FeatureSpec,
) -> None:
    """Add keys ``(H, n, D)`` to the state of one batch entry."""
    for rows in row_blocks(0, key.shape[1], block_rows(len(key), features)):
        seen, own_bias = visible(rows, bias)
        phi = key_features(key[:, seen], own_bias, features)
        if not phi.shape[1]:
            continue
        top = np.zeros(len(key))
        if features.kernel == "softmax":
            top = phi.max(axis=(1, 2)).astype(np.float64)
            phi -= zero_point(top).astype(phi.dtype)[:, np.newaxis, np.newaxis]
            np.exp(phi, out=phi)
        values = _storage.widen(value[:, seen])
        _fold(state, phi, values, top)


def _fold(state: LinearState, phi: _Array, values: _Array, top: _Array) -> None:
    """Add features relative to the exponent `top` of each head, and their values."""
    made = LinearState(
        np.matmul(phi.swapaxes(1, 2), values).astype(np.float64),
        phi.sum(axis=1, dtype=np.float64),
        top,
        values.sum(axis=1, dtype=np.float64),
        np.full(len(phi), phi.shape[1]),
    )
    add_state(state, made)


def add_state(state: LinearState, other: LinearState) -> None:
    """Add the keys of another state to a state, in place, whatever the leading axes."""
    top = np.maximum(state.stabiliser, other.stabiliser)
    own, added = (np.exp(x.stabiliser - zero_point(top)) for x in (state, other))
    for x, y in zip(state[:2], other[:2], strict=True):
        shape = (*top.shape, *(1,) * (x.ndim - top.ndim))
        x *= own.reshape(shape)
        x += added.reshape(shape) * y
    state.stabiliser[...] = top
    state.value_sum[...] += other.value_sum
    state.num_keys[...] += other.num_keys


class Block(NamedTuple):
    """A block of positions, of which each row sees a first few of its n keys.

    Attributes
    ----------
    tops : ndarray of float64, shape (H, n + 1)
        Prefix maxima of the exponents before the block and at each key; 0 where features are
        no exponentials.
    weights : ndarray, shape (H, R, n)
        Weights of the block's keys relative to the maximum of each row, 0 for unseen ones.
    factor : ndarray, shape (H, R, n), or None
        What makes exponentials of a key relative to a row's maximum, 0 for unseen ones.
    fall : ndarray, shape (H, R, 1)
        What multiplies the sums before the block, which are relative to ``tops[:, 0]``.
    share : ndarray, shape (H, R, 1), or None
        Epsilon times the sum of a query's features: what every key has beside; None where
        features contain it.
    """

    tops: _Array
    weights: _Array
    factor: _Array | None
    fall: _Array
    share: _Array | None


def weigh_block(
    phi_q: _Array,
    phi: _Array,
    before: _Array,
    count: NDArray[np.int64],
    features: FeatureSpec,
) -> Block:
    """Weigh the keys of a block, of which row i sees the first ``count[i]``.

    `phi` holds what `key_features` gives; exponents become exponentials relative to their
    key's prefix maximum. `before` is the maximum before the block.
    """
    dtype = phi.dtype
    tops = np.zeros((len(phi), phi.shape[1] + 1))
    unseen = np.arange(phi.shape[1]) >= count[:, np.newaxis]
    if features.kernel != "softmax":
        weights = np.matmul(phi_q, phi.swapaxes(1, 2))
        np.copyto(weights, 0, where=unseen)
        return Block(tops, weights, None, np.ones((*weights.shape[:2], 1), dtype), None)
    tops[:, 0] = before
    tops[:, 1:] = phi.max(axis=2)
    np.maximum.accumulate(tops, axis=1, out=tops)
    phi -= zero_point(tops[:, 1:, np.newaxis]).astype(dtype)
    np.exp(phi, out=phi)
    weights = np.matmul(phi_q, phi.swapaxes(1, 2))
    origin = zero_point(tops[:, count])[..., np.newaxis]
    factor = np.exp((tops[:, np.newaxis, 1:] - origin).astype(dtype))
    np.copyto(factor, 0, where=unseen)
    weights *= factor
    share = dtype.type(features.epsilon) * phi_q.sum(axis=2, keepdims=True)
    weights += share
    np.copyto(weights, 0, where=unseen)
    fall = np.exp((tops[:, np.newaxis, :1] - origin).astype(dtype))
    return Block(tops, weights, factor, fall, share)


def block_norm(block: Block, phi_q: _Array, state: LinearState) -> _Array:
    """Sum the weights of a block's rows ``(H, R, 1)``, `state` being what comes before."""
    dtype = phi_q.dtype
    norm: _Array = np.matmul(phi_q, state.denominator.astype(dtype)[..., np.newaxis])
    norm *= block.fall
    if block.share is not None:
        norm += block.share * state.num_keys.astype(dtype)[:, np.newaxis, np.newaxis]
    norm += block.weights.sum(axis=2, keepdims=True)
    return norm


def fold_block(state: LinearState, phi: _Array, values: _Array, block: Block) -> None:
    """Add the keys of a block to the state before it; overwrites what `weigh_block` left."""
    if not phi.shape[1]:
        return
    last = block.tops[:, -1]
    if block.share is not None:
        fall = np.exp(block.tops[:, 1:] - zero_point(last)[:, np.newaxis])
        phi *= fall.astype(phi.dtype)[..., np.newaxis]
    _fold(state, phi, values, last)

"""The gradient of causal linear attention: one walk forth over the positions, one back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._features import (
    key_features,
    query_features,
    query_gradients,
    through_key_features,
    visible,
)
from ruvector._kernels.fallback._online import zero_point
from ruvector._kernels.fallback._row_gradients import (
    Heads,
    Suffix,
    augmented,
    gradients_of_keys,
    put_keys,
    row_gradients,
)
from ruvector._kernels.fallback._sums import (
    Block,
    absorb_keys,
    block_norm,
    empty_state,
    fold_block,
    weigh_block,
)
from ruvector._kernels.spec import FeatureSpec, LinearState

__all__ = ["BLOCK", "causal_gradients"]

_Array = NDArray[Any]

# Positions in one block.
BLOCK = 128


class _Span(NamedTuple):
    """A block of positions ``[start, stop)``, and the keys' maximum before it."""

    start: int
    stop: int
    before: _Array


class _Saved(NamedTuple):
    """What the walk forth leaves of each query ``(H, Lq)``: its sum, and dL of its maximum."""

    norm: _Array
    grad_top: _Array


class _Positions:
    """The queries and keys of a block, their features and weights."""

    __slots__ = ("bias", "block", "count", "phi", "phi_q", "rows", "seen", "values")

    def __init__(self, heads: Heads, span: _Span, features: FeatureSpec) -> None:
        start, stop, before = span
        first = heads.key.shape[1] - heads.query.shape[1]
        self.rows = slice(start - first, stop - first)
        self.seen, self.bias = visible(slice(start, stop), heads.bias)
        places = np.arange(start, stop)
        keys = self.seen if isinstance(self.seen, np.ndarray) else places
        self.count = np.searchsorted(keys, places, "right")
        self.values = augmented(_storage.widen(heads.value[:, self.seen]))
        self.phi_q, _ = query_features(heads.query[:, self.rows], features, False)
        self.phi = key_features(heads.key[:, self.seen], self.bias, features)
        self.block: Block = weigh_block(self.phi_q, self.phi, before, self.count, features)

    def weight_gradients(self, g: _Array) -> tuple[_Array, _Array]:
        """Give the gradients of the weights, and those of ``phi(q_i).e_j``."""
        weights = np.matmul(g, self.values.swapaxes(1, 2))
        unseen = np.arange(self.phi.shape[1]) >= self.count[:, np.newaxis]
        np.copyto(weights, 0, where=unseen)
        if self.block.factor is None:
            return weights, weights
        return weights, weights * self.block.factor


def causal_gradients(heads: Heads, features: FeatureSpec) -> None:
    """Write the gradients of some heads whose queries are the last positions."""
    num_queries, num_keys = heads.query.shape[1], heads.key.shape[1]
    first = num_keys - num_queries
    dtype = _storage.compute_dtype(heads.query)
    state = empty_state(heads.key, heads.value.shape[2], features)
    if first > 0:
        before = None if heads.bias is None else heads.bias[:first]
        absorb_keys(heads.key[:, :first], heads.value[:, :first], before, state, features)
    else:
        heads.grad_query[:, :-first] = 0
    saved = _Saved(*(np.zeros(heads.query.shape[:2], dtype) for _ in _Saved._fields))
    spans: list[_Span] = []
    start = max(0, first)
    while start < num_keys:
        span = _Span(start, _stop(heads, start), state.stabiliser.copy())
        _walk_forth(heads, span, state, saved, features)
        spans.append(span)
        start = span.stop
    width = heads.value.shape[2] + 1
    suffix = Suffix(
        np.zeros((len(heads.key), len(features.projection), width)),
        np.zeros((len(heads.key), width)),
        state.stabiliser,
        np.zeros(len(heads.key)),
    )
    for span in reversed(spans):
        suffix = _walk_back(heads, span, suffix, saved, features)
    if first > 0:
        gradients_of_keys(heads, first, suffix, features)


def _stop(heads: Heads, start: int) -> int:
    """Give the end of a block; a position that is not finite would spoil others beside it."""
    first = heads.key.shape[1] - heads.query.shape[1]
    stop = min(start + BLOCK, heads.key.shape[1])
    rows = slice(start - first, stop - first)
    seen, _ = visible(slice(start, stop), heads.bias)
    arrays = [heads.value[:, seen], heads.out[:, rows], heads.grad_out[:, rows]]
    finite = all(np.isfinite(_storage.widen(x).sum()) for x in arrays)
    if finite and heads.grad_lse is not None:
        finite = bool(np.isfinite(heads.grad_lse[:, rows].sum()))
    return stop if finite else start + 1


def _walk_forth(
    heads: Heads, span: _Span, state: LinearState, saved: _Saved, features: FeatureSpec
) -> None:
    """Write the gradients of a block's queries, and add its keys to `state`."""
    here = _Positions(heads, span, features)
    phi_q, block, dtype = here.phi_q, here.block, here.phi_q.dtype
    norm = block_norm(block, phi_q, state)
    saved.norm[:, here.rows] = norm[..., 0]
    g, grad_lse = row_gradients(heads, here.rows, norm)
    grad_weights, grad_products = here.weight_gradients(g)
    grad_phi = np.matmul(g[..., :-1], state.numerator.astype(dtype).swapaxes(1, 2))
    grad_phi += g[..., -1:] * state.denominator.astype(dtype)[:, np.newaxis]
    grad_phi *= block.fall
    grad_phi += np.matmul(grad_products, here.phi)
    if block.share is not None:
        # What epsilon beside a key brings to all features of a query, and to its maximum.
        added = np.matmul(g[..., :-1], state.value_sum.astype(dtype)[..., np.newaxis])
        added += g[..., -1:] * state.num_keys.astype(dtype)[:, np.newaxis, np.newaxis]
        added += grad_weights.sum(axis=2, keepdims=True)
        saved.grad_top[:, here.rows] = (block.share * added)[..., 0]
        grad_phi += dtype.type(features.epsilon) * added
    made = query_gradients(
        heads.query[:, here.rows],
        phi_q,
        grad_phi,
        grad_phi.sum(axis=2, keepdims=True),
        grad_lse,
        features,
        heads.projection_total,
    )
    _storage.store(heads.grad_query[:, here.rows], made)
    fold_block(state, here.phi, here.values[..., :-1], block)


def _walk_back(
    heads: Heads, span: _Span, suffix: Suffix, saved: _Saved, features: FeatureSpec
) -> Suffix:
    """Write the gradients of a block's keys, and add its queries to the sums behind them."""
    here = _Positions(heads, span, features)
    phi_q, phi, block, dtype = here.phi_q, here.phi, here.block, here.phi_q.dtype
    g, _ = row_gradients(heads, here.rows, saved.norm[:, here.rows, np.newaxis])
    _, grad_products = here.weight_gradients(g)
    total, share, grad_top = suffix.total, suffix.share, suffix.grad_top
    if phi.shape[1]:
        behind = total.astype(dtype)
        grad_value = np.matmul(phi, behind[..., :-1])
        grad_phi = np.matmul(here.values, behind.swapaxes(1, 2))
        if block.share is not None:
            fall = np.exp(block.tops[:, 1:] - zero_point(block.tops[:, -1:])).astype(dtype)
            grad_value *= fall[..., np.newaxis]
            grad_phi *= fall[..., np.newaxis]
            grad_value += share.astype(dtype)[:, np.newaxis, :-1]
        grad_value += np.matmul(block.weights.swapaxes(1, 2), g[..., :-1])
        grad_phi += np.matmul(grad_products.swapaxes(1, 2), phi_q)
        grad_bias = through_key_features(phi, grad_phi, here.bias, features)
        if block.share is not None:
            grad_top = _give_maxima(here, saved, grad_top, grad_phi, grad_bias)
        put_keys(heads, here.seen, grad_phi, grad_bias, grad_value, features)
    else:
        grad_top = grad_top + saved.grad_top[:, here.rows].sum(axis=1, dtype=np.float64)
    if block.share is not None:
        share = share + np.matmul(block.share.swapaxes(1, 2), g)[:, 0]
        drop = np.exp(block.tops[:, 0] - zero_point(block.tops[:, -1]))
        total = total * drop[:, np.newaxis, np.newaxis]
        phi_q *= block.fall
    total = total + np.matmul(phi_q.swapaxes(1, 2), g)
    return Suffix(total, share, span.before, grad_top)


def _give_maxima(
    here: _Positions, saved: _Saved, grad_top: _Array, grad_y: _Array, grad_bias: _Array
) -> _Array:
    """Give the gradients of the rows' maxima to the keys that attain them.

    Returns those of the rows, here and behind, whose maximum lies before the block.
    """
    tops = here.block.tops
    num_heads, count = grad_bias.shape
    rising = np.where(tops[:, 1:] > tops[:, :-1], np.arange(1, count + 1), 0)
    # The place of the key that attains each prefix maximum, 0 where it lies before.
    owner = np.zeros((num_heads, count + 1), np.intp)
    np.maximum.accumulate(rising, axis=1, out=owner[:, 1:])
    given = np.zeros((num_heads, count + 1))
    index = np.arange(num_heads)
    own = saved.grad_top[:, here.rows]
    np.add.at(given, (index[:, np.newaxis], owner[:, here.count]), own)
    given[index, owner[:, -1]] += grad_top
    grad_bias += given[:, 1:]
    place = here.phi.argmax(axis=2)[..., np.newaxis]
    highest = np.take_along_axis(grad_y, place, axis=2)
    added = given[:, 1:, np.newaxis].astype(grad_y.dtype)
    np.put_along_axis(grad_y, place, highest + added, axis=2)
    return given[:, 0]

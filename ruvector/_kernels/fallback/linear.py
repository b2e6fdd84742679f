r"""Linear attention: the NumPy twin of the compiled kernels.

With features phi of queries and keys (:class:`ruvector._kernels.spec.FeatureSpec`) ::

    o = phi(q) A / phi(q) B        A = sum_j phi(k_j) v_j^T        B = sum_j phi(k_j)

so that the keys enter as M x Dv sums, whatever their number (Katharopoulos et al. 2020, arXiv
2006.16236). For exponential features, positive and unbiased for exp(q.k) (Choromanski et al.
2020, arXiv 2009.14794), the sums are kept relative to the largest exponent s, and epsilon is
added when they are read ::

    phi(k_j) = e^(t_j - s) + eps,   A = sum_j e^(t_j - s) v_j^T + eps 1 (sum_j v_j)^T

which makes the result independent of how keys are divided into calls. A causal row has the
sums and the s of its own prefix: within a block of positions the products phi(q_i).phi(k_j)
are formed, each relative to the prefix maximum of its key, so that nothing overflows.
Cost: 2 M (D + Dv) multiply-adds for each key and for each query. Memory: a few megabytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._features import key_features, query_features, visible
from ruvector._kernels.fallback._sums import (
    absorb_keys,
    add_state,
    block_norm,
    block_rows,
    empty_state,
    fold_block,
    parts,
    row_blocks,
    weigh_block,
)
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.spec import FeatureSpec, LinearState

__all__ = ["absorb", "attend", "attend_state", "merge"]

_Array = NDArray[Any]

# Positions in one block of a causal sequence.
_BLOCK = 128


def attend(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array | None,
    out: _Array,
    lse: _Array | None,
    causal: bool,
    features: FeatureSpec,
    threads: int,
) -> None:
    """Compute the output and L of every query row over a sequence of keys.

    Parameters
    ----------
    query : ndarray, shape (B, H, Lq, D)
        float32, float64, float16, or uint16 holding the bits of bfloat16. Any strides on
        the first three axes, zero and negative included; the last axis contiguous.
    key : ndarray, shape (B, H, Lk, D)
        Of the query's dtype.
    value : ndarray, shape (B, H, Lk, Dv)
        Of the query's dtype.
    bias : ndarray, shape (B, Lk), or None
        What is added to the logarithm of a key's weight, in the compute dtype; -inf hides the
        key. The last axis contiguous.
    out : ndarray, shape (B, H, Lq, Dv)
        Takes the output, in the query's dtype. Overlaps no input.
    lse : ndarray, shape (B, H, Lq), or None
        Takes L: float64 for float64, else float32.
    causal : bool
        Whether the queries are the last Lq positions and see no key behind their own.
    features : FeatureSpec
        The features, with the projection in the compute dtype.
    threads : int
        How many threads BLAS may use.
    """
    rows = key.shape[2] + query.shape[2]
    with blas_threads(threads, _multiply_adds(key, value, rows)), np.errstate(all="ignore"):
        for part in parts(query, features):
            own = query[part], key[part], value[part]
            row_bias = None if bias is None else bias[part[0]]
            state = empty_state(own[1], value.shape[3], features)
            row_lse = None if lse is None else lse[part]
            if causal:
                _attend_causal(*own, row_bias, state, out[part], row_lse, features)
            else:
                absorb_keys(*own[1:], row_bias, state, features)
                _read(own[0], state, out[part], row_lse, features)


def absorb(
    key: _Array,
    value: _Array,
    bias: _Array | None,
    state: LinearState,
    features: FeatureSpec,
    threads: int,
) -> None:
    """Add keys and values to a state, in place.

    Parameters
    ----------
    key, value, bias, features, threads
        As in `attend`.
    state : LinearState
        Contiguous arrays.
    """
    work = _multiply_adds(key, value, key.shape[2])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for part in parts(key, features):
            row_bias = None if bias is None else bias[part[0]]
            own = _copied(state, part)
            absorb_keys(key[part], value[part], row_bias, own, features)
            for target, made in zip(state, own, strict=True):
                target[part] = made


def attend_state(
    query: _Array,
    state: LinearState,
    out: _Array,
    lse: _Array | None,
    features: FeatureSpec,
    threads: int,
) -> None:
    """Compute the output and L of every query row from a state.

    Parameters
    ----------
    query, out, lse, features, threads
        As in `attend`.
    state : LinearState
        What `absorb` has made.
    """
    work = _multiply_adds(query, out, query.shape[2])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for part in parts(query, features):
            own = LinearState(*(x[part] for x in state))
            _read(query[part], own, out[part], None if lse is None else lse[part], features)


def merge(state: LinearState, other: LinearState) -> None:
    """Add the keys of another state to a state, in place.

    Parameters
    ----------
    state, other : LinearState
        Contiguous arrays of the same shapes, made with the same features.
    """
    with np.errstate(all="ignore"):
        add_state(state, other)


def _multiply_adds(x: _Array, value: _Array, rows: int) -> int:
    return int(x.shape[0] * x.shape[1] * rows * x.shape[3] * (x.shape[3] + value.shape[3]))


def _copied(state: LinearState, part: tuple[int, slice]) -> LinearState:
    # What is interrupted half-way must not show.
    return LinearState(*(x[part].copy() for x in state))


def _read(
    query: _Array, state: LinearState, out: _Array, lse: _Array | None, features: FeatureSpec
) -> None:
    """Attend from queries ``(H, n, D)`` to the state of one batch entry."""
    dtype = _storage.compute_dtype(query)
    numerator, denominator = state.numerator, state.denominator[..., np.newaxis]
    if features.kernel == "softmax":
        eps = features.epsilon
        numerator = numerator + eps * state.value_sum[:, np.newaxis]
        denominator = denominator + eps * state.num_keys[:, np.newaxis, np.newaxis]
    numerator, denominator = numerator.astype(dtype), denominator.astype(dtype)
    for rows in row_blocks(0, query.shape[1], block_rows(len(query), features)):
        phi, shift = query_features(query[:, rows], features, lse is not None)
        _finish(
            np.matmul(phi, numerator),
            np.matmul(phi, denominator)[..., 0],
            shift,
            state.stabiliser[:, np.newaxis],
            out[:, rows],
            None if lse is None else lse[:, rows],
            features,
        )


def _finish(
    total: _Array,
    norm: _Array,
    shift: _Array | None,
    stabiliser: _Array,
    out: _Array,
    lse: _Array | None,
    features: FeatureSpec,
) -> None:
    _storage.store(out, total / np.where(norm == 0, 1, norm)[..., np.newaxis])
    if lse is not None:
        lse[...] = np.log(features.gain * norm)
        if shift is not None:
            lse += shift + stabiliser


def _attend_causal(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array | None,
    state: LinearState,
    out: _Array,
    lse: _Array | None,
    features: FeatureSpec,
) -> None:
    """Attend from the last positions of one batch entry, starting from the empty `state`."""
    num_queries, num_keys = query.shape[1], key.shape[1]
    first = num_keys - num_queries
    if first > 0:
        before = None if bias is None else bias[:first]
        absorb_keys(key[:, :first], value[:, :first], before, state, features)
    else:
        out[:, :-first] = 0
        if lse is not None:
            lse[:, :-first] = -np.inf
    start = max(0, first)
    while start < num_keys:
        stop = min(start + _BLOCK, num_keys)
        seen, own_bias = visible(slice(start, stop), bias)
        values = _storage.widen(value[:, seen])
        if not np.isfinite(values).all():
            # 0 * NaN would reach rows before it; a single position has none.
            stop = start + 1
            seen, own_bias = visible(slice(start, stop), bias)
            values = _storage.widen(value[:, seen])
        rows = slice(start - first, stop - first)
        places = np.arange(start, stop)
        count = np.searchsorted(
            places[seen - start] if isinstance(seen, np.ndarray) else places, places, "right"
        )
        _attend_block(
            query[:, rows],
            key_features(key[:, seen], own_bias, features),
            values,
            count,
            state,
            out[:, rows],
            None if lse is None else lse[:, rows],
            features,
        )
        start = stop


def _attend_block(
    query: _Array,
    phi: _Array,
    values: _Array,
    count: NDArray[np.int64],
    state: LinearState,
    out: _Array,
    lse: _Array | None,
    features: FeatureSpec,
) -> None:
    """Attend from a block of positions, of which row i sees the first ``count[i]`` keys."""
    dtype = phi.dtype
    phi_q, shift = query_features(query, features, lse is not None)
    block = weigh_block(phi_q, phi, state.stabiliser, count, features)
    total = block.fall * np.matmul(phi_q, state.numerator.astype(dtype))
    norm = block_norm(block, phi_q, state)
    if features.kernel == "softmax":
        total += block.share * state.value_sum.astype(dtype)[:, np.newaxis]
    total += np.matmul(block.weights, values)
    _finish(total, norm[..., 0], shift, block.tops[:, count], out, lse, features)
    fold_block(state, phi, values, block)

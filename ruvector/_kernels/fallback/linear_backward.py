r"""The gradient of linear attention, by tiles of rows and matrix products.

With the weights ``w_ij = phi(q_i).phi(k_j)``, their row sums Z, and the gradients G of o and
dL of L, everything goes through ::

    dw_ij = g_i . u_j        g_i = [G_i, dL_i - G_i.o_i] / Z_i        u_j = [v_j, 1]

so that the sums over the other side are M x (Dv + 1), whatever the lengths ::

    A = sum_j phi(k_j) u_j^T            dphi(q_i) = A g_i
    S = sum_i phi(q_i) g_i^T            dphi(k_j) = S u_j        dv_j = S^T phi(k_j)

and through the features to q, k and the projection. The maxima that stabilise exponential
features cancel but for epsilon: their gradients, epsilon times the sum of dphi over what they
divide, go to the entry that attains them (the first of several), so that what is
returned is the gradient of what is computed.

Under the causal rule A is that of the row's prefix, and S, relative to the smallest of its
rows' maxima, that of the key's suffix: one walk forth for dq, one back for dk and dv, in
blocks of positions (Katharopoulos et al. 2020, arXiv 2006.16236, section 3.3; the kernels
chunk by chunk, with positive features as in Choromanski et al. 2020, arXiv 2009.14794).

Cost: 5 products of M D or M Dv multiply-adds for each key and each query, one more where the
projection's gradient is wanted. Memory: a few tiles, A and S, one number per query and
head.

Nearly all the work is matrix products, which BLAS does as fast as compiled tiles would, so
that this serves both backends. Threads take heads, each with its own BLAS on one
thread, and sums over them are merged in order: results do not depend on their number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._causal_gradients import BLOCK, causal_gradients
from ruvector._kernels.fallback._features import query_features, query_gradients
from ruvector._kernels.fallback._row_gradients import (
    Heads,
    Suffix,
    gradients_of_keys,
    row_gradients,
)
from ruvector._kernels.fallback._sums import absorb_keys, block_rows, empty_state, row_blocks
from ruvector._kernels.fallback._threads import blas_threads, in_order
from ruvector._kernels.spec import FeatureSpec

__all__ = ["attend_backward"]

_Array = NDArray[Any]

# Features of the heads that go together, and multiply-adds below which threads cost more
# than they save.
_FEATURES = 1 << 17
_SMALL_WORK = 1 << 24


def attend_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array | None,
    out: _Array,
    grad_out: _Array,
    grad_lse: _Array | None,
    grad_query: _Array,
    grad_key: _Array,
    grad_value: _Array,
    grad_bias: _Array | None,
    grad_projection: _Array | None,
    causal: bool,
    features: FeatureSpec,
    threads: int,
) -> None:
    """Compute the gradients of linear attention.

    Parameters
    ----------
    query, key, value, bias, causal, features
        As in ``linear.attend``.
    out : ndarray, shape (B, H, Lq, Dv)
        o as ``linear.attend`` wrote it.
    grad_out : ndarray, shape (B, H, Lq, Dv)
        Gradient of o, in the query's dtype.
    grad_lse : ndarray, shape (B, H, Lq), or None
        Gradient of L: float64 for float64, else float32. None stands for zeros.
    grad_query, grad_key, grad_value : ndarray
        Take the gradients, in shape and dtype of `query`, `key` and `value`. No two overlap.
    grad_bias : ndarray, shape (B, Lk), or None
        Takes the gradient of the bias, in its dtype; None where it is not wanted.
    grad_projection : ndarray of float64, shape (M, D), or None
        The gradient of the projection is added to it; None where it is not wanted.
    threads : int
        How many threads to use.
    """
    heads = query.shape[1]
    rows = 2 * BLOCK if causal else query.shape[2] + key.shape[2]
    step = max(1, _FEATURES // max(1, rows * len(features.projection)))
    places = [
        (b, slice(h, min(h + step, heads)))
        for b in range(len(query))
        for h in range(0, heads, step)
    ]
    lengths = query.shape[2] + key.shape[2]
    work = lengths * len(features.projection) * (query.shape[3] + value.shape[3])
    if heads * len(query) * work < _SMALL_WORK:
        threads = 1
    if grad_bias is not None:
        grad_bias[...] = 0

    def compute(place: tuple[int, slice]) -> tuple[int, Heads]:
        b, _ = place
        part = Heads(
            query[place],
            key[place],
            value[place],
            None if bias is None else bias[b],
            out[place],
            grad_out[place],
            None if grad_lse is None else grad_lse[place],
            grad_query[place],
            grad_key[place],
            grad_value[place],
            None if grad_bias is None else np.zeros(key.shape[2]),
            None if grad_projection is None else np.zeros(grad_projection.shape),
        )
        with blas_threads(1, part.query.shape[0] * work), np.errstate(all="ignore"):
            if bias is not None:
                part.grad_key[...] = 0
                part.grad_value[...] = 0
            if causal:
                causal_gradients(part, features)
            else:
                _full_gradients(part, features)
        return b, part

    for b, part in in_order(compute, places, min(threads, len(places))):
        if grad_bias is not None:
            grad_bias[b] += part.bias_total
        if grad_projection is not None:
            grad_projection += part.projection_total


def _full_gradients(heads: Heads, features: FeatureSpec) -> None:
    """Write the gradients of some heads of which every query sees every key."""
    dtype = _storage.compute_dtype(heads.query)
    exponential = features.kernel == "softmax"
    state = empty_state(heads.key, heads.value.shape[2], features)
    absorb_keys(heads.key, heads.value, heads.bias, state, features)
    sums = np.concatenate([state.numerator, state.denominator[..., np.newaxis]], axis=2)
    seen = np.concatenate([state.value_sum, state.num_keys[:, np.newaxis]], axis=1)
    if exponential:
        sums += features.epsilon * seen[:, np.newaxis]
    sums = sums.astype(dtype)
    over_features = sums.sum(axis=1)[..., np.newaxis]
    total = np.zeros(sums.shape)
    for rows in row_blocks(0, heads.query.shape[1], block_rows(len(heads.query), features)):
        phi, _ = query_features(heads.query[:, rows], features, False)
        norm = np.matmul(phi, sums[..., -1:])
        g, grad_lse = row_gradients(heads, rows, norm)
        total += np.matmul(phi.swapaxes(1, 2), g)
        grad_phi = np.matmul(g, sums.swapaxes(1, 2))
        made = query_gradients(
            heads.query[:, rows],
            phi,
            grad_phi,
            np.matmul(g, over_features),
            grad_lse,
            features,
            heads.projection_total,
        )
        _storage.store(heads.grad_query[:, rows], made)
    share = np.zeros(seen.shape)
    if exponential:
        share = features.epsilon * total.sum(axis=1)
    grad_top = np.einsum("hd,hd->h", share, seen)
    suffix = Suffix(total, share, state.stabiliser, grad_top)
    gradients_of_keys(heads, heads.key.shape[1], suffix, features)

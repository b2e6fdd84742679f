r"""The gradient of attention along edges: the NumPy twin of the compiled kernels.

For ``o_i = sum_j p_ij m_j``, ``p_ij = exp(s_ij - L_i)`` and the scores s of
:class:`ruvector._kernels.spec.EdgeSpec`, with ``u`` what LeakyReLU is applied to and
``D_i = dO_i . o_i - dL_i``::

    ds_ij = p_ij (dO_i . m_j - D_i)       du_ij = ds_ij att leaky'(u_ij)
    d right_i = sum_j du_ij               d left_j = sum_i du_ij
    d m_j = sum_i p_ij dO_i               d e_ij = W^T du_ij
    d att = sum_ij ds_ij leaky(u_ij)      d W = sum_ij du_ij e_ij^T

Scores are recomputed from L in blocks of edges, once in the order of receivers and once in
that of senders, so that every row is summed in one piece. Work is three times that of the
forward pass; memory beside inputs and results is O(E) integers and a few blocks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.fallback.graph import group
from ruvector._kernels.spec import EdgeSpec

__all__ = ["attend_backward", "loop_features", "loop_features_gradient", "weight_gradient"]

_Array = NDArray[Any]
_Integers = NDArray[np.int64]

# Numbers in the largest array of one block.
_BLOCK = 1 << 18


def weight_gradient(x: _Array, grad: _Array, out: _Array, threads: int) -> None:
    """Multiply the transpose of rows of gradients by rows of inputs.

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Inputs of a matrix product ``x @ weight.T``: contiguous rows of the compute dtype, as
        have the other two.
    grad : ndarray, shape (N, M)
        Gradient of its result.
    out : ndarray, shape (M, D)
        Takes ``grad.T @ x``, the gradient of the weight.
    threads : int
        Bound on BLAS threads.
    """
    with blas_threads(threads, out.size * len(x)), np.errstate(invalid="ignore"):
        np.matmul(grad.T, x, out=out)


def loop_features(
    features: _Array, indptr: _Integers, indices: _Integers, nodes: int, out: _Array
) -> None:
    """Give edges from nodes to themselves the mean features of the node's others.

    Parameters
    ----------
    features : ndarray, shape (E, De)
        Contiguous rows of the compute dtype, as has `out`.
    indptr, indices : ndarray of int64
        The rows of the graph as it was given.
    nodes : int
        Receivers below have an edge to themselves in the new graph.
    out : ndarray, shape (E', De)
        Takes the features of the new graph: by receiver those of its edges from others, as
        they came, and then the mean of these, 0 where there are none.
    """
    ends, kept, places, loops = _loops(indptr, indices, nodes)
    out[loops] = 0
    out[places] = features[kept]
    degrees = np.bincount(ends, minlength=len(indptr) - 1)[:nodes]
    filled = np.flatnonzero(degrees)
    if not len(filled):
        return
    # A row's own edge lies behind its others, and still holds 0 as rows are summed.
    starts = (loops - degrees)[filled]
    sums = np.add.reduceat(out[: loops[-1] + 1], starts, axis=0, dtype=np.float64)
    out[loops[filled]] = sums / degrees[filled, np.newaxis]


def loop_features_gradient(
    grad: _Array, indptr: _Integers, indices: _Integers, nodes: int, out: _Array
) -> None:
    """Differentiate :func:`loop_features`.

    Parameters
    ----------
    grad : ndarray, shape (E', De)
        Gradient of the features of the new graph.
    indptr, indices, nodes
        As in :func:`loop_features`.
    out : ndarray, shape (E, De)
        Takes that of the features of the graph as it was given.
    """
    ends, kept, places, loops = _loops(indptr, indices, nodes)
    receivers = len(indptr) - 1
    shares = np.zeros((receivers, grad.shape[1]), grad.dtype)
    degrees = np.maximum(np.bincount(ends, minlength=receivers)[:nodes], 1)
    np.divide(grad[loops], degrees[:, np.newaxis].astype(grad.dtype), out=shares[:nodes])
    out[...] = 0
    out[kept] = grad[places] + shares[ends]


def _loops(
    indptr: _Integers, indices: _Integers, nodes: int
) -> tuple[_Integers, _Integers, _Integers, _Integers]:
    """Return receivers of edges that stay, where they are and will be; where the new ones."""
    ends = np.arange(len(indptr) - 1).repeat(np.diff(indptr).astype(np.intp, copy=False))
    kept = np.flatnonzero(indices != ends)
    ends = ends[kept]
    # Before an edge that stays lie those of its kind, and a new one for each row before.
    places = np.arange(len(kept)) + np.minimum(ends, nodes)
    degrees = np.bincount(ends, minlength=len(indptr) - 1)[:nodes]
    return ends, kept, places, np.cumsum(degrees + 1) - 1


def attend_backward(
    left: _Array,
    messages: _Array,
    right: _Array,
    edges: _Array | None,
    bias: _Array | None,
    spec: EdgeSpec,
    indptr: _Integers,
    indices: _Integers,
    lse: _Array,
    delta: _Array,
    grad_sums: _Array,
    grad_left: _Array,
    grad_messages: _Array | None,
    grad_right: _Array,
    grad_edges: _Array | None,
    grad_bias: _Array | None,
    grad_att: _Array,
    grad_weight: _Array | None,
    threads: int,
) -> None:
    """Differentiate the attended sums of every receiver and their log-sum-exp.

    All arrays of numbers are contiguous and of the compute dtype. Every gradient is written,
    not added to.

    Parameters
    ----------
    left : ndarray, shape (Ns, H, C)
        Transformed senders, as scores see them.
    messages : ndarray, shape (Ns, H, C)
        Transformed senders, as they are summed; perhaps `left` itself.
    right : ndarray, shape (N, H, C)
        Transformed receivers.
    edges : ndarray, shape (E, De), or None
        Features in the order of `indices`.
    bias : ndarray, shape (E,), or None
        Added to the scores of each edge in every head.
    spec : EdgeSpec
        The score function; how sums are finished does not matter here, nor does `loops`.
    indptr : ndarray of int64, shape (N + 1,)
        Receiver i has the edges ``indptr[i]`` to ``indptr[i + 1]``.
    indices : ndarray of int64, shape (E,)
        Sender of each edge.
    lse : ndarray, shape (N, H)
        L; a receiver where it is -inf has no gradient.
    delta : ndarray, shape (N, H)
        ``D = sum(grad_sums * sums) - grad_lse``.
    grad_sums : ndarray, shape (N, H, C)
        Gradient of the attended sums, before anything is added to them.
    grad_left, grad_messages, grad_right, grad_edges, grad_bias : ndarray or None
        Take the gradients, in the shapes of their arrays. Without `grad_messages`, that of
        the messages is part of `grad_left`.
    grad_att : ndarray, shape (H, C)
        Takes the gradient of ``spec.att``.
    grad_weight : ndarray, shape (H * C, De), or None
        Takes that of ``spec.edge_weight``.
    threads : int
        Bound on BLAS threads.
    """
    walk = _Walk(left, messages, right, edges, bias, spec, lse, delta, grad_sums)
    att = np.zeros(grad_att.shape)
    weight = None if grad_weight is None else np.zeros(grad_weight.shape)
    starts, order = np.empty(len(left) + 1, np.int64), np.empty(len(indices), np.int64)
    group(indices, starts, order)
    receivers = np.arange(len(right)).repeat(np.diff(indptr).astype(np.intp, copy=False))
    for result in (grad_left, grad_messages, grad_right):
        if result is not None:
            result[...] = 0
    step = max(1, _BLOCK // max(1, right.shape[1] * right.shape[2]))
    work = 0 if edges is None else len(indices) * edges.shape[1] * right.shape[1] * 3
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for start in range(0, len(indices), step):
            part = slice(start, start + step)
            ends = receivers[part]
            edge = walk.terms(indices[part], ends, part)
            att += np.einsum("ehc,eh->hc", edge.leaky, edge.scores)
            _add_rows(grad_right, ends, edge.inner)
            if grad_bias is not None:
                grad_bias[part] = edge.scores.sum(axis=1)
            if edges is None:
                continue
            assert spec.edge_weight is not None
            rows = edge.inner.reshape(len(ends), len(spec.edge_weight))
            if grad_edges is not None:
                np.matmul(rows, spec.edge_weight, out=grad_edges[part])
            if weight is not None:
                weight += rows.T @ edges[part]
        senders = indices[order]
        for start in range(0, len(indices), step):
            places = order[start : start + step]
            starts, ends = senders[start : start + step], receivers[places]
            edge = walk.terms(starts, ends, places)
            inner, grad = edge.inner, grad_sums[ends]
            grad *= edge.weights[..., np.newaxis]
            if grad_messages is None:
                inner += grad
            else:
                _add_rows(grad_messages, starts, grad)
            _add_rows(grad_left, starts, inner)
    grad_att[...] = att
    if grad_weight is not None:
        grad_weight[...] = weight


class _Terms(NamedTuple):
    """What edges contribute: p and ds ``(n, H)``, leaky(u) and du ``(n, H, C)``."""

    weights: _Array
    scores: _Array
    leaky: _Array
    inner: _Array


class _Walk:
    """A graph's arrays, from which the terms of any of its edges are computed again."""

    def __init__(
        self,
        left: _Array,
        messages: _Array,
        right: _Array,
        edges: _Array | None,
        bias: _Array | None,
        spec: EdgeSpec,
        lse: _Array,
        delta: _Array,
        grad_sums: _Array,
    ) -> None:
        self._left, self._messages, self._right = left, messages, right
        self._edges, self._bias, self._spec = edges, bias, spec
        self._lse = np.where(lse == -np.inf, lse.dtype.type(np.inf), lse)
        self._delta, self._grad = delta, grad_sums

    def terms(self, senders: _Integers, receivers: _Integers, edges: Any) -> _Terms:
        """Compute the terms of edges, `edges` their positions."""
        spec = self._spec
        u = self._left[senders] + self._right[receivers]
        if self._edges is not None:
            assert spec.edge_weight is not None
            u += (self._edges[edges] @ spec.edge_weight.T).reshape(u.shape)
        if spec.shift is not None:
            u += spec.shift
        slope = np.where(u < 0, u.dtype.type(spec.negative_slope), u.dtype.type(1))
        u *= slope
        score = np.einsum("ehc,hc->eh", u, spec.att)
        if self._bias is not None:
            score += self._bias[edges, np.newaxis]
        # Scores that are computed anew may exceed L by their rounding.
        weights = np.exp(np.minimum(score - self._lse[receivers], 0))
        scores = np.einsum("ehc,ehc->eh", self._messages[senders], self._grad[receivers])
        scores -= self._delta[receivers]
        scores *= weights
        scores[weights == 0] = 0
        slope *= spec.att
        slope *= scores[..., np.newaxis]
        return _Terms(weights, scores, u, slope)


def _add_rows(out: _Array, rows: _Integers, terms: _Array) -> None:
    """Add terms, ordered by the row that they belong to."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    out[rows[starts]] += np.add.reduceat(terms, starts, axis=0)

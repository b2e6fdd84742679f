r"""Attention along the edges of a graph: the NumPy twin of the compiled kernels.

With the score s of an edge as :class:`ruvector._kernels.spec.EdgeSpec` has it (GATv2, Brody
et al. 2021, arXiv 2105.14491), for every receiver i over its senders j::

    o_i = sum_j exp(s_ij - L_i) left_j          L_i = ln sum_j exp(s_ij)

Edges are taken in blocks; a receiver whose edges lie in several carries its state (m, l, o)
from one to the next as the online softmax does. Cost is ``E De H C`` multiply-adds for the
features of E edges and a few passes over ``E H C`` numbers; memory beside inputs and output
is a few blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.spec import EdgeSpec

__all__ = ["aggregate", "group", "hops", "project", "scores"]

_Array = NDArray[Any]
_Integers = NDArray[np.int64]

# Numbers in the largest array of one block.
_BLOCK = 1 << 18


def project(x: _Array, weight: _Array, out: _Array, threads: int) -> None:
    """Multiply every row of x by a matrix.

    Parameters
    ----------
    x : ndarray, shape (N, D)
        Storage array with contiguous rows.
    weight : ndarray, shape (M, D)
        Contiguous, of the compute dtype.
    out : ndarray, shape (N, M)
        ``x @ weight.T`` in the compute dtype; contiguous rows.
    threads : int
        Bound on BLAS threads.
    """
    step = max(1, _BLOCK // max(1, x.shape[1]))
    with (
        blas_threads(threads, x.shape[0] * weight.size),
        np.errstate(invalid="ignore", over="ignore"),
    ):
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            out[rows] = _storage.ready(x[rows]) @ weight.T


def aggregate(
    left: _Array,
    right: _Array,
    edges: _Array | None,
    spec: EdgeSpec,
    indptr: _Integers,
    indices: _Array,
    out: _Array,
    lse: _Array | None,
    threads: int,
) -> None:
    """Attend from every receiver of a graph to its senders.

    Parameters
    ----------
    left : ndarray, shape (Ns, H, C)
        Transformed senders: contiguous, of the compute dtype, as are `right` and `out`.
    right : ndarray, shape (N, H, C)
        Transformed receivers.
    edges : ndarray, shape (E, De), or None
        Features in the order of `indices`: a storage array with contiguous rows.
    spec : EdgeSpec
        The score function and how sums are finished.
    indptr : ndarray of int64, shape (N + 1,)
        Receiver i has the edges ``indptr[i]`` to ``indptr[i + 1]``.
    indices : ndarray of int32 or int64, shape (E,)
        Sender of each edge.
    out : ndarray, shape (N, H * C) or (N, C)
        Takes the finished rows; holds what is added to them with ``spec.accumulate``.
    lse : ndarray, shape (N, H), or None
        Takes L; contiguous, of the compute dtype.
    threads : int
        Bound on BLAS threads.
    """
    state = _State(left, right, spec)
    step = state.edges_at_once
    work = 0 if spec.edge_weight is None else len(indices) * spec.edge_weight.size
    with blas_threads(threads, work), np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(indices), step):
            stop = min(start + step, len(indices))
            receivers = _receivers(indptr, start, stop)
            senders = indices[start:stop]
            features = None if edges is None else _storage.widen(edges[start:stop])
            if spec.loops:
                kept = np.flatnonzero(senders != receivers)
                senders, receivers = senders[kept], receivers[kept]
                if features is not None:
                    features = features[kept]
                    state.count(receivers, features)
            state.add(senders, receivers, features)
        if spec.loops:
            nodes = min(len(left), len(right))
            for start in range(0, nodes, step):
                loops = np.arange(start, min(start + step, nodes))
                state.add(loops, loops, None if edges is None else state.mean(loops))
        state.finish(out, lse)


class _State:
    """The online softmax of every receiver: m, l, and the sums o and of features."""

    def __init__(self, left: _Array, right: _Array, spec: EdgeSpec) -> None:
        shape, dtype = right.shape, right.dtype
        self._left, self._right, self._spec = left, right, spec
        self._m = np.full(shape[:2], -np.inf, dtype)
        self._l = np.zeros(shape[:2], dtype)
        self._o: _Array = np.zeros(shape, dtype)
        weight = spec.edge_weight
        features = 0 if weight is None or not spec.loops else weight.shape[1]
        self._counts = np.zeros(shape[0], np.int64)
        self._features = np.zeros((shape[0], features))
        self.edges_at_once = max(1, _BLOCK // max(1, shape[1] * shape[2]))

    def count(self, receivers: _Integers, features: _Array) -> None:
        """Take edges into the mean of their receiver's features."""
        if not len(receivers):
            return
        starts = _first(receivers)
        nodes = receivers[starts]
        self._counts[nodes] += np.diff(starts, append=len(receivers))
        self._features[nodes] += np.add.reduceat(features, starts, axis=0, dtype=np.float64)

    def mean(self, nodes: _Integers) -> _Array:
        """Return the mean features of the edges counted, 0 for none."""
        counts = np.maximum(self._counts[nodes], 1)[:, np.newaxis]
        return (self._features[nodes] / counts).astype(self._o.dtype)

    def add(self, senders: _Array, receivers: _Integers, features: _Array | None) -> None:
        """Take edges, ordered by receiver, into the softmax of their receivers."""
        if not len(receivers):
            return
        messages = self._left[senders]
        score = _score(messages + self._right[receivers], features, self._spec)
        starts = _first(receivers)
        nodes = receivers[starts]
        m = self._m[nodes]
        top = np.maximum(m, np.maximum.reduceat(score, starts, axis=0))
        base = np.where(top == -np.inf, 0, top)
        fall = np.exp(m - base)
        score -= base.repeat(np.diff(starts, append=len(receivers)), axis=0)
        np.exp(score, out=score)
        messages *= score[..., np.newaxis]
        self._m[nodes] = top
        self._l[nodes] = self._l[nodes] * fall + np.add.reduceat(score, starts, axis=0)
        summed = np.add.reduceat(messages, starts, axis=0)
        self._o[nodes] = self._o[nodes] * fall[..., np.newaxis] + summed

    def finish(self, out: _Array, lse: _Array | None) -> None:
        """Write the output rows and L."""
        spec, o, some = self._spec, self._o, self._l != 0
        o /= np.where(some, self._l, 1)[..., np.newaxis]
        if spec.message is not None:
            np.add(o, spec.message, out=o, where=some[..., np.newaxis])
        rows = o.mean(axis=1) if spec.average else o.reshape(len(o), o.shape[1] * o.shape[2])
        if spec.bias is not None:
            rows += spec.bias
        if spec.accumulate:
            out += rows
        else:
            out[...] = rows
        if lse is not None:
            with np.errstate(divide="ignore"):
                np.log(self._l, out=lse)
            np.add(lse, self._m, out=lse, where=some)


def _score(x: _Array, features: _Array | None, spec: EdgeSpec) -> _Array:
    """Score edges ``(..., H, C)`` of summed ends, which are overwritten."""
    if features is not None:
        assert spec.edge_weight is not None
        x += (features @ spec.edge_weight.T).reshape(x.shape)
    if spec.shift is not None:
        x += spec.shift
    np.multiply(x, x.dtype.type(spec.negative_slope), out=x, where=x < 0)
    x *= spec.att
    result: _Array = x.sum(axis=-1)
    return result


def _receivers(indptr: _Integers, start: int, stop: int) -> _Integers:
    """Return the receiver of each of the edges from start to stop."""
    first = int(np.searchsorted(indptr, start, "right")) - 1
    last = int(np.searchsorted(indptr, stop, "left"))
    bounds = np.clip(indptr[first : last + 1], start, stop)
    return np.arange(first, last).repeat(_lengths(bounds))


def _lengths(indptr: _Integers) -> _Array:
    """Return the length of every row, in the type NumPy counts in: 32 bits in a browser."""
    return np.diff(indptr).astype(np.intp, copy=False)


def _first(receivers: _Integers) -> _Integers:
    """Return where the edges of each receiver begin."""
    return np.flatnonzero(np.diff(receivers, prepend=-1))


def scores(
    left: _Array,
    right: _Array,
    edges: _Array | None,
    spec: EdgeSpec,
    out: _Array,
    threads: int,
) -> None:
    """Score every receiver against every sender.

    Parameters
    ----------
    left : ndarray, shape (B, n, H, C)
        Transformed senders: contiguous, of the compute dtype, as are `right` and `out`.
    right : ndarray, shape (B, m, H, C)
        Transformed receivers.
    edges : ndarray, shape (B, m, n, De), or None
        Features: a storage array of any strides with contiguous rows.
    spec : EdgeSpec
        The score function; how sums are finished does not matter here.
    out : ndarray, shape (B, H, m, n)
        Takes the scores.
    threads : int
        Bound on BLAS threads.
    """
    (batch, n, heads, channels), m = left.shape, right.shape[1]
    width = max(1, heads * channels)
    keys = max(1, min(n, _BLOCK // width))
    rows = max(1, _BLOCK // (width * keys))
    work = 0 if spec.edge_weight is None else batch * m * n * spec.edge_weight.size
    with blas_threads(threads, work), np.errstate(invalid="ignore", over="ignore"):
        for b in range(batch):
            for i in range(0, m, rows):
                for j in range(0, n, keys):
                    ends, starts = slice(i, i + rows), slice(j, j + keys)
                    features = None if edges is None else _storage.widen(edges[b, ends, starts])
                    x = right[b, ends, np.newaxis] + left[b, np.newaxis, starts]
                    out[b, :, ends, starts] = np.moveaxis(_score(x, features, spec), -1, 0)


def group(keys: _Integers, indptr: _Integers, order: _Integers) -> None:
    """Order positions by key, equal keys as they came.

    Parameters
    ----------
    keys : ndarray of int64, shape (E,)
        Contiguous, from 0 to N - 1.
    indptr : ndarray of int64, shape (N + 1,)
        Takes where the positions of each key begin in `order`, and E.
    order : ndarray of int64, shape (E,)
        Takes the positions.
    """
    indptr[0] = 0
    counts = np.bincount(keys.astype(np.intp, copy=False), minlength=len(indptr) - 1)
    np.cumsum(counts, out=indptr[1:])
    order[...] = np.argsort(keys, kind="stable")


def hops(
    indptr: _Integers,
    indices: _Array,
    sources: _Integers,
    max_hops: int,
    out: _Integers,
) -> None:
    """Measure in edges how far every node is from the nearest source.

    A breadth-first search from senders to receivers (Moore 1959) over the transposed rows:
    work and memory O(N + E).

    Parameters
    ----------
    indptr, indices : ndarray
        As in :func:`aggregate`, over one set of N nodes.
    sources : ndarray of int64, shape (S,)
        Nodes at distance 0; may repeat.
    max_hops : int
        Where the search stops; below 0 nowhere.
    out : ndarray of int64, shape (N,)
        Takes the distances; -1 where no source leads within `max_hops`.
    """
    nodes = len(out)
    starts, order = np.empty(nodes + 1, np.int64), np.empty(len(indices), np.int64)
    group(np.asarray(indices, np.int64), starts, order)
    receivers = np.arange(nodes).repeat(_lengths(indptr))[order]
    out[...] = -1
    out[sources] = 0
    front = np.unique(sources)
    distance = 0
    while len(front) and distance != max_hops:
        distance += 1
        counts = (starts[front + 1] - starts[front]).astype(np.intp, copy=False)
        offsets = np.repeat(starts[front] + counts - counts.cumsum(), counts)
        reached = receivers[offsets + np.arange(len(offsets))]
        front = np.unique(reached[out[reached] < 0])
        out[front] = distance

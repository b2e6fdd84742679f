"""Graphs in compressed sparse rows, checked: row i lists the nodes that send to node i."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _kernels
from ._arrays import Array, integers, view
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["Looped", "csr_from_edges", "csr_from_graph", "in_range", "read_csr"]

_Integers = NDArray[np.int64]


def read_csr(
    indptr: Any, indices: Any, receivers: int | None, senders: int | None
) -> tuple[_Integers, Array]:
    """Check the rows of a graph.

    Parameters
    ----------
    indptr : array_like of int, or a graph
        Where rows begin; or, with `indices` None, anything :func:`csr_from_graph` takes.
    indices : array_like of int, or None
        Senders.
    receivers, senders : int or None
        How many nodes there are on each side; None for as many as there are rows.

    Returns
    -------
    indptr : ndarray of int64
    indices : ndarray of int32 or int64
        As they lie in memory where possible.

    Raises
    ------
    DimensionMismatchError
        If lengths do not fit each other.
    InvalidConfigError
        If rows have a negative length, or an index is out of range.
    TypeError
        If either does not hold integers.
    """
    if indices is None:
        indptr, indices, _ = csr_from_graph(indptr, "indptr")
    starts = integers(indptr, "indptr")
    array, is_bfloat16 = view(indices, "indices")
    if not is_bfloat16 and array.dtype == np.int32:
        array = np.require(array, requirements=["C", "A"])
    else:
        array = integers(indices, "indices")
    if starts.ndim != 1 or starts.size == 0:
        raise DimensionMismatchError(
            f"indptr must have one axis and at least one entry, got shape {starts.shape}"
        )
    if array.ndim != 1:
        raise DimensionMismatchError(f"indices must have one axis, got shape {array.shape}")
    if receivers is not None and starts.size != receivers + 1:
        raise DimensionMismatchError(
            f"indptr must have length {receivers + 1}, one more than there are nodes, "
            f"got {starts.size}"
        )
    if starts[0] != 0 or starts[-1] != array.size:
        raise DimensionMismatchError(
            f"indptr must run from 0 to {array.size}, the length of indices, "
            f"got {starts[0]} to {starts[-1]}"
        )
    if np.any(starts[1:] < starts[:-1]):
        raise InvalidConfigError("indptr must not decrease")
    in_range(array, "indices", starts.size - 1 if senders is None else senders)
    return starts, array


def in_range(indices: Array, name: str, count: int) -> None:
    """Raise unless every index is one of `count` nodes."""
    if not indices.size:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= count:
        raise InvalidConfigError(
            f"{name} must be nodes from 0 to {count - 1}, got {low if low < 0 else high}"
        )


def csr_from_edges(
    edges: _Integers, senders: int, receivers: int
) -> tuple[_Integers, _Integers, _Integers]:
    """Order checked edges ``(2, E)`` by receiver; also return their former positions."""
    indptr = np.empty(receivers + 1, np.int64)
    order = np.empty(edges.shape[1], np.int64)
    in_range(edges[0], "edge_index[0]", senders)
    in_range(edges[1], "edge_index[1]", receivers)
    _kernels.graph.group(np.ascontiguousarray(edges[1]), indptr, order)
    return indptr, edges[0][order], order


def csr_from_graph(graph: Any, name: str) -> tuple[Array, Array, _Integers]:
    """Return the rows of a SciPy sparse array or a NetworkX graph, and its edges' order.

    Neither library is imported: only an object of one that is loaded can be given.
    """
    scipy_sparse, networkx = sys.modules.get("scipy.sparse"), sys.modules.get("networkx")
    if scipy_sparse is not None and scipy_sparse.issparse(graph):
        rows = graph.tocsr()
        return rows.indptr, rows.indices, np.arange(rows.nnz)
    if networkx is not None and isinstance(graph, networkx.Graph):
        position = {node: i for i, node in enumerate(graph)}
        pairs = graph.to_directed(as_view=True).edges()
        edges = np.array(
            [(position[sender], position[receiver]) for sender, receiver in pairs], np.int64
        ).reshape(-1, 2)
        return csr_from_edges(edges.T, len(position), len(position))
    raise TypeError(
        f"{name} must hold integers and come with indices, or be a SciPy sparse array or a "
        f"NetworkX graph, got {type(graph).__name__}"
    )


class Looped:
    """A graph whose nodes have one edge to themselves, in place of those that they had.

    Parameters
    ----------
    indptr, indices : ndarray of int64
        The rows of the graph.
    senders : int
        How many nodes send; receivers beyond have no edge to themselves.

    Attributes
    ----------
    indptr, indices : ndarray of int64
        The rows of the new graph, each with its new edge last.
    """

    def __init__(self, indptr: _Integers, indices: _Integers, senders: int) -> None:
        receivers = len(indptr) - 1
        nodes = min(receivers, senders)
        ends = np.arange(receivers).repeat(np.diff(indptr).astype(np.intp, copy=False))
        kept = np.flatnonzero(indices != ends)
        ends = ends[kept]
        sizes = np.bincount(ends, minlength=receivers)
        sizes[:nodes] += 1
        self.indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        self.indices = np.empty(self.indptr[-1], np.int64)
        # Before an edge that stays lie those of its kind, and a new one for each row before.
        self.indices[np.arange(len(kept)) + np.minimum(ends, nodes)] = indices[kept]
        self.indices[self.indptr[1 : nodes + 1] - 1] = np.arange(nodes)
        self._given = (indptr, indices, nodes)

    def features(self, features: Array) -> Array:
        """Return features ``(E, width)`` for the new edges; of a loop, the mean of its row."""
        result = np.empty((len(self.indices), features.shape[1]), features.dtype)
        _kernels.graph_backward.loop_features(features, *self._given, result)
        return result

    def features_gradient(self, grad: Array) -> Array:
        """Turn the gradient of new features into that of the features given."""
        result = np.empty((len(self._given[1]), grad.shape[1]), grad.dtype)
        _kernels.graph_backward.loop_features_gradient(grad, *self._given, result)
        return result

"""Graphs as compressed sparse rows, and distances along their edges."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _kernels
from ._arrays import Array, integers
from ._checks import integer
from ._csr import csr_from_edges, csr_from_graph, in_range, read_csr
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["edges_to_csr", "hop_distances"]

_Integers = NDArray[np.int64]


def edges_to_csr(
    edge_index: Any, num_nodes: int | tuple[int, int] | None = None
) -> tuple[Array, Array, _Integers]:
    """Order the edges of a graph by the node that receives.

    Parameters
    ----------
    edge_index : array_like of int, shape (2, E), or a graph
        Senders in the first row, receivers in the second, as PyTorch Geometric has them. Or
        a SciPy sparse array, whose row i lists what sends to i, or a NetworkX graph, whose
        nodes are numbered as it lists them and whose undirected edges send both ways.
    num_nodes : int or (int, int), optional
        How many nodes there are; for a bipartite graph how many senders and receivers. Only
        with an array of edges, where it is required.

    Returns
    -------
    indptr : ndarray, shape (num_nodes + 1,)
        Node i receives through the edges ``indptr[i]`` to ``indptr[i + 1]``.
    indices : ndarray, shape (E,)
        Their senders.
    order : ndarray of int64, shape (E,)
        Where each edge was in `edge_index` (of a sparse array, among its entries by rows; of
        a NetworkX graph, in ``graph.to_directed().edges``): ``features[order]`` brings edge
        features into the order of `indices`. Edges to the same node stay as they were.

    Raises
    ------
    DimensionMismatchError
        If `edge_index` has another shape.
    InvalidConfigError
        If an index is out of range, or `num_nodes` is missing or not a count.
    TypeError
        If `edge_index` does not hold integers.

    Examples
    --------
    >>> import ruvector
    >>> indptr, indices, order = ruvector.graph.edges_to_csr([[0, 2, 1], [1, 1, 0]], 3)
    >>> indptr, indices, order
    (array([0, 1, 3, 3]), array([1, 0, 2]), array([2, 0, 1]))
    """
    if num_nodes is None:
        return csr_from_graph(edge_index, "edge_index")
    if isinstance(num_nodes, tuple):
        if len(num_nodes) != 2:
            raise InvalidConfigError(
                f"num_nodes must be a number or (senders, receivers), got {num_nodes!r}"
            )
        senders, receivers = (integer(n, f"num_nodes[{i}]", 0) for i, n in enumerate(num_nodes))
    else:
        senders = receivers = integer(num_nodes, "num_nodes", 0)
    edges = integers(edge_index, "edge_index")
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise DimensionMismatchError(f"edge_index must have shape (2, E), got {edges.shape}")
    return csr_from_edges(edges, senders, receivers)


def hop_distances(
    indptr: Any,
    indices: ArrayLike | None,
    sources: ArrayLike,
    max_hops: int | None = None,
) -> _Integers:
    """Count the edges from the nearest source to every node, in the direction of sending.

    Parameters
    ----------
    indptr : array_like of int, shape (N + 1,), or a graph
        Node i receives through the edges ``indptr[i]`` to ``indptr[i + 1]``. Or a graph as
        in :func:`edges_to_csr`, beside None for `indices`.
    indices : array_like of int, shape (E,), or None
        Senders.
    sources : array_like of int
        A node or several, at distance 0.
    max_hops : int, optional
        The longest distance of interest; unbounded by default.

    Returns
    -------
    ndarray of int64, shape (N,)
        Distances; -1 for a node that no source leads to within `max_hops`. Hide those from
        attention with a mask.

    Raises
    ------
    DimensionMismatchError
        If lengths do not fit each other.
    InvalidConfigError
        If `indptr` decreases, an index is out of range or `max_hops` is negative.
    TypeError
        If an array does not hold integers.

    Notes
    -----
    A breadth-first search; time and memory grow with N + E.

    Examples
    --------
    A chain 0, 1, 2 and a node apart:

    >>> import ruvector
    >>> indptr, indices, _ = ruvector.graph.edges_to_csr([[0, 1], [1, 2]], 4)
    >>> ruvector.graph.hop_distances(indptr, indices, 0)
    array([ 0,  1,  2, -1])
    """
    starts, senders = read_csr(indptr, indices, None, None)
    first = np.atleast_1d(integers(sources, "sources"))
    if first.ndim != 1:
        raise DimensionMismatchError(
            f"sources must be a node or have one axis, got shape {first.shape}"
        )
    nodes = starts.size - 1
    in_range(first, "sources", nodes)
    limit = -1 if max_hops is None else integer(max_hops, "max_hops", 0)
    distances = np.empty(nodes, np.int64)
    _kernels.graph.hops(starts, senders, first, min(limit, nodes), distances)
    return distances

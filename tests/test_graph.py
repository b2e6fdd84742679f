"""Graphs as rows, and distances along their edges."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import reference_graph as reference
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector.graph import edges_to_csr, hop_distances

pytestmark = pytest.mark.usefixtures("backend")

GRAPHS = reference.graphs()
EDGES = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=40)


@given(EDGES)
def test_edges_to_csr(edges):
    index = np.array(edges, np.int64).reshape(-1, 2).T
    indptr, indices, order = edges_to_csr(index, 9)
    assert indptr.shape == (10,)
    assert indptr[0] == 0
    assert indptr[-1] == len(edges)
    receivers = np.repeat(np.arange(9), np.diff(indptr))
    np.testing.assert_array_equal(np.stack([indices, receivers]), index[:, order])
    same = np.diff(receivers) == 0
    assert (np.diff(order)[same] > 0).all()


def test_bipartite():
    indptr, indices, order = edges_to_csr([[5, 0], [1, 0]], (6, 2))
    np.testing.assert_array_equal(indptr, [0, 1, 2])
    np.testing.assert_array_equal(indices, [0, 5])
    np.testing.assert_array_equal(order, [1, 0])


@pytest.mark.parametrize(
    ("edge_index", "num_nodes", "error", "message"),
    [
        ([0, 1], 2, ruvector.DimensionMismatchError, r"edge_index must have shape \(2, E\)"),
        ([[0], [1], [2]], 3, ruvector.DimensionMismatchError, "edge_index must have shape"),
        ([[0], [2]], 2, ruvector.InvalidConfigError, r"edge_index\[1\] must be nodes"),
        ([[2], [0]], 2, ruvector.InvalidConfigError, r"edge_index\[0\] must be nodes"),
        ([[-1], [0]], 2, ruvector.InvalidConfigError, "got -1"),
        ([[0], [0]], 0, ruvector.InvalidConfigError, "must be nodes from 0 to -1"),
        ([[0.0], [1.0]], 2, TypeError, "edge_index must hold integers"),
        ([[0], [1]], None, TypeError, "edge_index must hold integers and come with"),
        ([[0], [1]], -1, ruvector.InvalidConfigError, "num_nodes must be an integer"),
        ([[0], [1]], (2, 2, 2), ruvector.InvalidConfigError, "num_nodes must be a number or"),
    ],
)
def test_edges_to_csr_errors(edge_index, num_nodes, error, message):
    with pytest.raises(error, match=message):
        edges_to_csr(edge_index, num_nodes)


@pytest.mark.parametrize("index_type", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("name", GRAPHS)
def test_hop_distances(name, index_type):
    indptr, indices = GRAPHS[name]
    for sources in ([], list(range(0, len(indptr) - 1, 13)), list(range(len(indptr) - 1))):
        for max_hops in (None, 0, 2):
            sources = np.array(sources, np.int64)
            distances = hop_distances(
                indptr, indices.astype(index_type), sources, max_hops=max_hops
            )
            wanted = reference.hop_distances(indptr, indices, sources, max_hops)
            np.testing.assert_array_equal(distances, wanted)
            assert distances.dtype == np.int64


@given(EDGES, st.integers(0, 8))
def test_hop_distances_as_networkx(edges, source):
    networkx = pytest.importorskip("networkx")
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(9))
    graph.add_edges_from(edges)
    lengths = networkx.single_source_shortest_path_length(graph, source)
    wanted = [lengths.get(node, -1) for node in range(9)]
    np.testing.assert_array_equal(hop_distances(graph, None, source), wanted)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (([0, 1], [0], 1), ruvector.InvalidConfigError, "sources must be nodes from 0 to 0"),
        (([0, 1], [0], -1), ruvector.InvalidConfigError, "sources must be nodes"),
        (([0, 1], [1], 0), ruvector.InvalidConfigError, "indices must be nodes"),
        (([0, 1], [0], [[0]]), ruvector.DimensionMismatchError, "sources must be a node or"),
        (([0, 1], [0], 0.5), TypeError, "sources must hold integers"),
        (([0, 1], [0], 0, -1), ruvector.InvalidConfigError, "max_hops must be an integer"),
        (([0, 2, 1, 1], [0], 0), ruvector.InvalidConfigError, "indptr must not decrease"),
    ],
)
def test_hop_distances_errors(call, error, message):
    with pytest.raises(error, match=message):
        hop_distances(*call)


class TestGraphObjects:
    def test_scipy(self):
        sparse = pytest.importorskip("scipy.sparse")
        indptr, indices = GRAPHS["random"]
        rows = sparse.csr_array((np.ones(200), indices, indptr), shape=(40, 40))
        taken = edges_to_csr(rows)
        np.testing.assert_array_equal(taken[0], indptr)
        np.testing.assert_array_equal(taken[1], indices)
        np.testing.assert_array_equal(taken[2], np.arange(200))
        assert np.shares_memory(taken[1], rows.indices)
        wanted = reference.hop_distances(indptr, indices, [3])
        np.testing.assert_array_equal(hop_distances(rows, None, 3), wanted)

    def test_networkx_orders_edges(self):
        networkx = pytest.importorskip("networkx")
        for kind in (networkx.Graph, networkx.DiGraph, networkx.MultiDiGraph):
            graph = kind([("c", "a"), ("a", "b"), ("b", "b"), ("c", "b")])
            if graph.is_multigraph():
                graph.add_edge("c", "a")
            names = list(graph)
            indptr, indices, order = edges_to_csr(graph)
            receivers = np.repeat(np.arange(3), np.diff(indptr))
            listed = list(graph.to_directed().edges())
            got = [(names[j], names[i]) for j, i in zip(indices, receivers, strict=True)]
            assert got == [listed[position] for position in order]

    def test_networkx_without_edges(self):
        networkx = pytest.importorskip("networkx")
        indptr, indices, _ = edges_to_csr(networkx.empty_graph(3))
        np.testing.assert_array_equal(indptr, [0, 0, 0, 0])
        assert indices.size == 0


def test_imports_neither_library():
    code = """
import sys, numpy as np, ruvector
attention = ruvector.EdgeFeaturedAttention.simple(2, 0, 1)
attention.compute_graph(np.zeros((2, 2)), [0, 1, 1], [1])
try:
    ruvector.graph.edges_to_csr([[0], [1]])
except TypeError:
    pass
assert not {"scipy", "networkx"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""EdgeFeaturedAttention: against loops over the edges, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
import pickle

import numpy as np
import pytest
import reference_graph as reference
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import EdgeFeaturedAttention, EdgeFeaturedConfig

pytestmark = pytest.mark.usefixtures("backend")

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 4e-6}, "float64": {"rtol": 1e-11, "atol": 1e-12}}
GRAPHS = reference.graphs()
OPTIONS = [
    {},
    {"concat_heads": False, "out_dim": 5},
    {"share_weights": True, "out_dim": 6},
    {"residual": True, "add_self_loops": False},
    {"bias": False, "residual": True, "concat_heads": False},
    {"bias": False, "share_weights": True, "negative_slope": 0.0},
]


def layer(node_dim=6, edge_dim=3, num_heads=2, *, dtype="float64", **options):
    """Make an attention whose biases are not 0."""
    config = EdgeFeaturedConfig(node_dim, edge_dim, num_heads, **options)
    attention = EdgeFeaturedAttention(config, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    for name, array in attention.parameters().items():
        if "bias" in name:
            array[...] = rng.standard_normal(array.shape)
    return attention, config


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
def test_graph(options, dtype):
    attention, config = layer(dtype=dtype, **options)
    rng = np.random.default_rng(3)
    for name in ("random", "power law", "no edges", "only loops", "no nodes"):
        indptr, indices = GRAPHS[name]
        x = rng.standard_normal((len(indptr) - 1, 6)).astype(dtype)
        for features in (None, rng.standard_normal((len(indices), 3)).astype(dtype)):
            out, lse = attention.compute_graph(x, indptr, indices, features, return_lse=True)
            wanted = reference.layer(
                attention.parameters(), config, x, indptr, indices, features
            )
            assert out.dtype == lse.dtype == dtype
            np.testing.assert_allclose(out, wanted[0], **TOLERANCE[dtype])
            np.testing.assert_allclose(lse, wanted[1], **TOLERANCE[dtype])


@pytest.mark.parametrize("options", OPTIONS)
def test_bipartite(options):
    attention, config = layer(**options)
    rng = np.random.default_rng(4)
    x, x_src = rng.standard_normal((20, 6)), rng.standard_normal((9, 6))
    indptr, indices, order = ruvector.graph.edges_to_csr(
        [rng.integers(0, 9, 70), rng.integers(0, 20, 70)], (9, 20)
    )
    features = rng.standard_normal((70, 3))[order]
    out = attention.compute_graph(x, indptr, indices, features, x_src=x_src)
    wanted, _ = reference.layer(
        attention.parameters(), config, x, indptr, indices, features, x_src
    )
    np.testing.assert_allclose(out, wanted, **TOLERANCE["float64"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_node(options, mask, dtype):
    attention, config = layer(dtype=dtype, **options)
    rng = np.random.default_rng(5)
    query, features = rng.standard_normal((4, 6)), rng.standard_normal((4, 9, 3))
    keys, values = rng.standard_normal((2, 9, 6))
    query, keys, values, features = (a.astype(dtype) for a in (query, keys, values, features))
    if mask == "bool":
        mask = rng.random((4, 9)) < 0.6
        mask[2] = False
    elif mask == "float":
        mask = np.where(rng.random((4, 9)) < 0.3, -np.inf, rng.standard_normal((4, 9)))
    if mask is not None:
        keys[3], values[3] = np.nan, np.inf
        mask[:, 3] = False if mask.dtype == bool else -np.inf
    result = attention.compute_with_edges(
        query, keys, values, features, mask=mask, return_lse=True, return_weights=True
    )
    clean = np.nan_to_num(keys, nan=0.0), np.where(np.isfinite(values), values, 0)
    for i in range(4):
        wanted = reference.node(
            attention.parameters(),
            config,
            query[i],
            *clean,
            features[i],
            None if mask is None else mask[i],
        )
        for got, want in zip(result, wanted, strict=True):
            got = got[:, i] if got.ndim == 3 else got[i]
            np.testing.assert_allclose(got, want, **TOLERANCE[dtype])
        one = attention.compute_with_edges(
            query[i], keys, values, features[i], mask=None if mask is None else mask[i]
        )
        np.testing.assert_allclose(one, wanted[0], **TOLERANCE[dtype])


def test_plain_compute_leaves_features_out():
    attention, config = layer()
    rng = np.random.default_rng(6)
    x = rng.standard_normal((12, 6))
    wanted, _, _ = reference.node(attention.parameters(), config, x[0], x, x)
    for got in (
        attention.compute(x[0], x, x),
        attention.compute_with_edges(x[0], x, x, None),
        attention.compute_with_mask(x[0], x, x, None),
        asyncio.run(attention.compute_async(x[0], x, x)),
    ):
        np.testing.assert_allclose(got, wanted, **TOLERANCE["float64"])


def test_a_node_and_its_row_of_a_graph_agree():
    attention, _ = layer(add_self_loops=False)
    rng = np.random.default_rng(7)
    x, features = rng.standard_normal((40, 6)), rng.standard_normal((200, 3))
    indptr, indices = GRAPHS["random"]
    graph = attention.compute_graph(x, indptr, indices, features)
    for i in np.flatnonzero(np.diff(indptr)):
        row = slice(indptr[i], indptr[i + 1])
        near = x[indices[row]]
        one = attention.compute_with_edges(x[i], near, near, features[row])
        np.testing.assert_allclose(one, graph[i], **TOLERANCE["float64"])


def test_batches():
    attention, _ = layer()
    rng = np.random.default_rng(8)
    query, memory = rng.standard_normal((3, 4, 6)), rng.standard_normal((3, 9, 6))
    features = rng.standard_normal((3, 4, 9, 3))
    for keys in (memory, memory[0]):
        out, lse = attention.compute_with_edges(query, keys, keys, features, return_lse=True)
        assert lse.shape == (3, 4, 2)
        for b in range(3):
            k = keys[b] if keys.ndim == 3 else keys
            one = attention.compute_with_edges(query[b], k, k, features[b])
            np.testing.assert_allclose(out[b], one, **TOLERANCE["float64"])
    shared = attention.compute_with_edges(query, memory, memory, features[0, 0])
    wide = np.broadcast_to(features[0, 0], (3, 4, 9, 3))
    again = attention.compute_with_edges(query, memory, memory, wide)
    np.testing.assert_allclose(shared, again, **TOLERANCE["float64"])


def test_no_queries():
    attention, _ = layer()
    memory = np.zeros((9, 6))
    assert attention.compute(np.zeros((0, 6)), memory, memory).shape == (0, 6)
    assert attention.compute(np.zeros((0, 4, 6)), memory, memory).shape == (0, 4, 6)
    assert attention.compute(np.zeros((3, 0, 6)), memory, memory).shape == (3, 0, 6)


def test_many_queries_in_parts(monkeypatch):
    attention, _ = layer()
    rng = np.random.default_rng(9)
    query, memory = rng.standard_normal((2, 30, 6)), rng.standard_normal((2, 9, 6))
    features = rng.standard_normal((2, 30, 9, 3))
    call = {"return_lse": True, "return_weights": True}
    mask = rng.random((2, 30, 9)) < 0.5
    whole = attention.compute_with_edges(query, memory, memory, features, mask=mask, **call)
    for scores in (1, 100, 700):
        monkeypatch.setattr("ruvector._gatv2._SCORES", scores)
        parts = attention.compute_with_edges(query, memory, memory, features, mask=mask, **call)
        for one, other in zip(parts, whole, strict=True):
            np.testing.assert_allclose(one, other, **TOLERANCE["float64"])


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_storage_types(storage):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16) if storage == "bfloat16" else np.dtype(storage)
    attention, _ = layer(dtype="float32")
    rng = np.random.default_rng(10)
    indptr, indices = GRAPHS["random"]
    x = rng.standard_normal((40, 6)).astype(dtype)
    features = rng.standard_normal((200, 3)).astype(dtype)
    out, lse = attention.compute_graph(x, indptr, indices, features, return_lse=True)
    wide = attention.compute_graph(
        x.astype(np.float32), indptr, indices, features.astype(np.float32)
    )
    assert out.dtype == dtype
    assert lse.dtype == np.float32
    np.testing.assert_allclose(out.astype(np.float32), wide, rtol=1e-2, atol=1e-2)
    one = attention.compute_with_edges(x[0], x, x, features[:40])
    assert one.dtype == dtype
    wide = attention.compute_with_edges(
        *(a.astype(np.float32) for a in (x[0], x, x, features[:40]))
    )
    np.testing.assert_allclose(one.astype(np.float32), wide, rtol=1e-2, atol=1e-2)


def test_mixed_types_promote():
    attention, config = layer(dtype="float32")
    rng = np.random.default_rng(11)
    indptr, indices = GRAPHS["random"]
    x = rng.standard_normal((40, 6))
    features = rng.standard_normal((200, 3))
    out = attention.compute_graph(x, indptr, indices, features)
    wanted, _ = reference.layer(attention.parameters(), config, x, indptr, indices, features)
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, wanted, **TOLERANCE["float64"])
    out = attention.compute_graph(x.astype(np.float32), indptr, indices, features)
    assert out.dtype == np.float32
    counts = attention.compute_graph(np.ones((40, 6), int), indptr, indices)
    assert counts.dtype == np.float32


def test_out():
    attention, _ = layer()
    rng = np.random.default_rng(12)
    indptr, indices = GRAPHS["random"]
    x = rng.standard_normal((40, 6))
    wanted = attention.compute_graph(x, indptr, indices)
    overlapping = x.copy()
    assert attention.compute_graph(overlapping, indptr, indices, out=overlapping) is overlapping
    np.testing.assert_array_equal(overlapping, wanted)
    wanted = attention.compute(x[:5], x, x)
    target = np.empty((5, 12))[:, ::2]
    assert attention.compute(x[:5], x, x, out=target) is target
    np.testing.assert_array_equal(target, wanted)


@given(
    edges=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30),
    loops=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_graph(edges, loops, seed):
    attention, config = layer(add_self_loops=loops)
    rng = np.random.default_rng(seed)
    index = np.array(edges, np.int64).reshape(-1, 2).T
    indptr, indices, order = ruvector.graph.edges_to_csr(index, 8)
    x, features = rng.standard_normal((8, 6)), rng.standard_normal((len(edges), 3))[order]
    out = attention.compute_graph(x, indptr, indices, features)
    wanted, _ = reference.layer(attention.parameters(), config, x, indptr, indices, features)
    np.testing.assert_allclose(out, wanted, **TOLERANCE["float64"])


def test_one_head_and_one_feature():
    attention, config = layer(edge_dim=1, num_heads=1)
    rng = np.random.default_rng(13)
    indptr, indices = GRAPHS["random"]
    x, features = rng.standard_normal((40, 6)), rng.standard_normal(200)
    out, lse = attention.compute_graph(x, indptr, indices, features, return_lse=True)
    assert lse.shape == (40,)
    wanted = reference.layer(
        attention.parameters(), config, x, indptr, indices, features[:, None]
    )
    np.testing.assert_allclose(out, wanted[0], **TOLERANCE["float64"])
    np.testing.assert_allclose(lse, wanted[1][:, 0], **TOLERANCE["float64"])


class TestGraphObjects:
    def test_scipy(self):
        sparse = pytest.importorskip("scipy.sparse")
        attention, _ = layer(edge_dim=1)
        indptr, indices = GRAPHS["random"]
        rng = np.random.default_rng(14)
        x, data = rng.standard_normal((40, 6)), rng.standard_normal(200)
        rows = sparse.csr_array((data, indices, indptr), shape=(40, 40))
        wanted = attention.compute_graph(x, indptr, indices, data)
        parts = attention.compute_graph(x, rows.indptr, rows.indices, rows.data)
        np.testing.assert_array_equal(parts, wanted)
        whole = attention.compute_graph(x, rows, edge_features=rows.data)
        np.testing.assert_array_equal(whole, wanted)

    def test_networkx(self):
        networkx = pytest.importorskip("networkx")
        attention, config = layer(add_self_loops=False)
        graph = networkx.DiGraph([("a", "b"), ("c", "b"), ("b", "a")])
        graph.add_node("alone")
        x = np.random.default_rng(15).standard_normal((4, 6))
        # a, b, c, alone: b hears from a and c, a from b.
        indptr, indices = np.array([0, 1, 3, 3, 3]), np.array([1, 0, 2])
        wanted, _ = reference.layer(attention.parameters(), config, x, indptr, indices)
        out = attention.compute_graph(x, graph)
        np.testing.assert_allclose(out, wanted, **TOLERANCE["float64"])


class TestObject:
    def test_configuration(self):
        attention = EdgeFeaturedAttention(node_dim=8, edge_dim=2, num_heads=4, residual=True)
        config = EdgeFeaturedConfig(8, 2, 4, residual=True)
        assert attention == EdgeFeaturedAttention(config)
        assert hash(attention) == hash(EdgeFeaturedAttention(config))
        assert attention != EdgeFeaturedAttention.simple(8, 2, 4)
        assert eval(repr(attention), vars(ruvector)) == attention
        assert attention.dim == attention.out_dim == 8
        with pytest.raises(AttributeError):
            config.num_heads = 2

    def test_seeds(self):
        def state(**keywords):
            attention = EdgeFeaturedAttention(EdgeFeaturedConfig(8, 2, 4), **keywords)
            return attention.state_dict()

        first, second = state(seed=3), state(rng=np.random.default_rng(3))
        assert all(np.array_equal(first[name], second[name]) for name in first)
        assert not np.array_equal(first["att"], state(seed=4)["att"])
        simple = EdgeFeaturedAttention.simple(8, 2, 4, seed=3).state_dict()
        assert all(np.array_equal(first[name], simple[name]) for name in first)
        assert {x.dtype.name for x in first.values()} == {"float32"}

    def test_parameters_are_live(self):
        attention, _ = layer()
        x = np.random.default_rng(16).standard_normal((5, 6))
        before = attention.compute(x[0], x, x)
        attention.parameters()["bias"][...] += 1
        np.testing.assert_allclose(attention.compute(x[0], x, x), before + 1)

    def test_state(self):
        attention, config = layer()
        x = np.random.default_rng(17).standard_normal((5, 6))
        other = EdgeFeaturedAttention(config, dtype="float64")
        other.load_state_dict(attention.state_dict())
        wanted = attention.compute(x[0], x, x)
        copies = copy.deepcopy(attention), pickle.loads(pickle.dumps(attention)), other
        for one in copies:
            np.testing.assert_array_equal(one.compute(x[0], x, x), wanted)
        attention.parameters()["att"][...] = 0
        for one in copies:
            np.testing.assert_array_equal(one.compute(x[0], x, x), wanted)

    def test_shared_weights_load_their_copies(self):
        attention, _ = layer(share_weights=True)
        state = attention.state_dict()
        doubled = {
            **state,
            "lin_r.weight": state["lin_l.weight"],
            "lin_r.bias": state["lin_l.bias"],
        }
        attention.load_state_dict(doubled)
        doubled["lin_r.bias"] = state["lin_l.bias"] + 1
        with pytest.raises(ruvector.InvalidConfigError, match=r"lin_r\.bias must equal"):
            attention.load_state_dict(doubled)


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"node_dim": 0}, "node_dim must be an integer of at least 1"),
            ({"edge_dim": -1}, "edge_dim must be an integer of at least 0"),
            ({"num_heads": 3}, "num_heads must divide out_dim"),
            ({"out_dim": 0}, "out_dim must be"),
            ({"negative_slope": np.nan}, "negative_slope must be a finite"),
            ({"bias": 1}, "bias must be True or False"),
        ],
    )
    def test_configuration(self, fields, message):
        fields = {"node_dim": 8, "edge_dim": 2, "num_heads": 2, **fields}
        for make in (EdgeFeaturedConfig, EdgeFeaturedAttention):
            with pytest.raises(ruvector.InvalidConfigError, match=message):
                make(**fields)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"seed": 1, "rng": np.random.default_rng()}, "seed and rng"),
            ({"rng": 3}, "rng must be"),
            ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
            ({"seed": 1.5}, "seed must be an integer of at least 0, got 1.5"),
            ({"dtype": "float16"}, "dtype must be"),
            ({"dtype": "foo"}, "dtype must be 'float32' or 'float64', got 'foo'"),
            ({"num_heads": 2}, "config must not come with its fields"),
        ],
    )
    def test_construction(self, keywords, message):
        with pytest.raises(ruvector.InvalidConfigError, match=message):
            EdgeFeaturedAttention(EdgeFeaturedConfig(8, 2, 2), **keywords)

    @pytest.mark.parametrize(
        ("indptr", "indices", "error", "message"),
        [
            ([0, 1, 2], [0, 3], ruvector.InvalidConfigError, "indices must be nodes from 0"),
            ([0, 1, 2, 2], [0, 3], ruvector.InvalidConfigError, "0 to 2, got 3"),
            ([0, 1, 2, 2], [-1, 0], ruvector.InvalidConfigError, "got -1"),
            ([0, 1, 2, 2], [2**63, 0], ruvector.InvalidConfigError, "that fit int64, got 922"),
            ([0, 2, 1, 2], [0, 1], ruvector.InvalidConfigError, "indptr must not decrease"),
            ([0, 2**62, 1, 2], [0, 1], ruvector.InvalidConfigError, "must not decrease"),
            ([1, 1, 2, 2], [0, 1], ruvector.DimensionMismatchError, "must run from 0 to 2"),
            ([0, 1, 2, 3], [0, 1], ruvector.DimensionMismatchError, "must run from 0 to 2"),
            ([0, 2], [0, 1], ruvector.DimensionMismatchError, "must have length 4"),
            ([], [], ruvector.DimensionMismatchError, "at least one entry"),
            ([[0, 1, 2, 2]], [0, 1], ruvector.DimensionMismatchError, "one axis"),
            ([0, 1, 2, 2], [[0, 1]], ruvector.DimensionMismatchError, "one axis"),
            ([0.0, 1.0, 2.0, 2.0], [0, 1], TypeError, "indptr must hold integers"),
            ([0, 1, 2, 2], [0.0, 1.0], TypeError, "indices must hold integers"),
            ([0, 1, 2, 2], None, TypeError, "indptr must hold integers and come with"),
        ],
    )
    def test_rows(self, indptr, indices, error, message):
        attention, _ = layer()
        if message.startswith("indices must be nodes from 0"):
            indptr = [0, 1, 2, 2]
        out = np.full((3, 6), 7.0)
        if indices == [2**63, 0]:
            indices = np.array(indices, np.uint64)
        with pytest.raises(error, match=message):
            attention.compute_graph(np.zeros((3, 6)), indptr, indices, out=out)
        assert (out == 7).all()

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": np.zeros((3, 5))}, ruvector.DimensionMismatchError, r"x must have shape"),
            ({"x": np.zeros(6)}, ruvector.DimensionMismatchError, r"x must have shape"),
            ({"x": np.zeros((3, 6), complex)}, TypeError, "x must hold real numbers"),
            ({"x_src": np.zeros((3, 4))}, ruvector.DimensionMismatchError, "x_src must have"),
            ({"x_src": np.zeros((1, 6))}, ruvector.InvalidConfigError, "indices must be nodes"),
            (
                {"edge_features": np.zeros((2, 4))},
                ruvector.DimensionMismatchError,
                r"edge_features must have shape \(2, 3\)",
            ),
            ({"edge_features": [["a"] * 3] * 2}, TypeError, "edge_features must hold real"),
            ({"out": np.zeros((3, 5))}, ruvector.DimensionMismatchError, "out must have shape"),
            ({"out": np.zeros((3, 6), np.float32)}, TypeError, "out must have dtype"),
        ],
    )
    def test_graph(self, change, error, message):
        attention, _ = layer()
        call = {"x": np.zeros((3, 6)), "indptr": [0, 1, 2, 2], "indices": [0, 1], **change}
        with pytest.raises(error, match=message):
            attention.compute_graph(**call)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"values": np.zeros((4, 5))}, ruvector.DimensionMismatchError, "values must have"),
            ({"keys": np.zeros((0, 6))}, ruvector.EmptyInputError, "keys must hold"),
            (
                {"edge_features": np.zeros((3, 3))},
                ruvector.DimensionMismatchError,
                r"edge_features must have shape \(4, 3\)",
            ),
            (
                {"edge_features": np.zeros((1, 4, 3))},
                ruvector.DimensionMismatchError,
                "edge_features must have shape",
            ),
            ({"mask": np.ones(3, bool)}, ruvector.InvalidMaskError, "mask must have shape"),
        ],
    )
    def test_node(self, change, error, message):
        attention, _ = layer()
        call = {
            "query": np.zeros(6),
            "keys": np.zeros((4, 6)),
            "values": np.zeros((4, 6)),
            "edge_features": np.zeros((4, 3)),
            **change,
        }
        with pytest.raises(error, match=message):
            attention.compute_with_edges(**call)

    def test_state(self):
        attention, _ = layer()
        state = attention.state_dict()
        with pytest.raises(ruvector.InvalidConfigError, match="state must hold"):
            attention.load_state_dict({"att": state["att"]})
        with pytest.raises(ruvector.DimensionMismatchError, match="att must have shape"):
            attention.load_state_dict({**state, "att": state["att"][0]})

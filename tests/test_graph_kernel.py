"""The kernels under graph attention: every backend against loops over the edges."""

from __future__ import annotations

import numpy as np
import pytest
import reference_graph as reference
from hypothesis import given
from hypothesis import strategies as st

from ruvector import _kernels
from ruvector._kernels.spec import EdgeSpec

pytestmark = pytest.mark.usefixtures("backend")

TOLERANCE = {"float32": {"rtol": 2e-5, "atol": 4e-6}, "float64": {"rtol": 1e-12, "atol": 1e-13}}
GRAPHS = reference.graphs()


def problem(rng, graph, heads, channels, dtype, *, edge_dim=3, senders=None, **options):
    """Return arguments of ``aggregate`` but for the results, as a dict."""
    indptr, indices = graph
    n = len(indptr) - 1
    senders = n if senders is None else senders

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    edges = normal(len(indices), edge_dim) if edge_dim else None
    return {
        "left": normal(senders, heads, channels),
        "right": normal(n, heads, channels),
        "edges": edges,
        "spec": EdgeSpec(
            att=normal(heads, channels),
            negative_slope=options.pop("negative_slope", 0.2),
            edge_weight=normal(heads * channels, edge_dim) if edge_dim else None,
            **options,
        ),
        "indptr": indptr,
        "indices": indices,
    }


def run(problem, *, return_lse=True, threads=2, fill=np.nan):
    right, spec = problem["right"], problem["spec"]
    n, heads, channels = right.shape
    out = np.full((n, channels if spec.average else heads * channels), fill, right.dtype)
    lse = np.full((n, heads), np.nan, right.dtype) if return_lse else None
    _kernels.graph.aggregate(**problem, out=out, lse=lse, threads=threads)
    return out, lse


def expected(problem):
    spec = problem["spec"]
    return reference.graph_attention(
        problem["left"],
        problem["right"],
        spec.att,
        problem["indptr"],
        problem["indices"],
        features=problem["edges"],
        edge_weight=spec.edge_weight,
        shift=spec.shift,
        negative_slope=spec.negative_slope,
        loops=spec.loops,
    )


def check(problem, dtype):
    out, lse = run(problem)
    wanted, wanted_lse = expected(problem)
    np.testing.assert_allclose(out, wanted.reshape(out.shape), **TOLERANCE[dtype])
    np.testing.assert_allclose(lse, wanted_lse, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loops", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, loops, dtype):
    rng = np.random.default_rng(1)
    heads, channels = (1, 3) if name == "hub" else (3, 5)
    check(problem(rng, GRAPHS[name], heads, channels, dtype, loops=loops), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("heads", "channels", "edge_dim"),
    [(8, 16, 16), (1, 1, 1), (17, 2, 5), (2, 33, 0), (3, 48, 7), (5, 8, 2), (40, 4, 1)],
)
def test_widths(heads, channels, edge_dim, dtype):
    rng = np.random.default_rng(2)
    graph = GRAPHS["power law"]
    check(problem(rng, graph, heads, channels, dtype, edge_dim=edge_dim, loops=True), dtype)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0, -0.5, 3.0])
def test_slopes_and_shift(slope):
    rng = np.random.default_rng(3)
    args = problem(
        rng,
        GRAPHS["random"],
        2,
        9,
        "float64",
        negative_slope=slope,
        shift=rng.standard_normal((2, 9)),
    )
    check(args, "float64")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_finish(average, accumulate, dtype):
    rng = np.random.default_rng(4)
    heads, channels = 3, 18
    width = channels if average else heads * channels
    message, bias = rng.standard_normal((heads, channels)), rng.standard_normal(width)
    args = problem(
        rng,
        GRAPHS["random"],
        heads,
        channels,
        dtype,
        average=average,
        accumulate=accumulate,
        message=message.astype(dtype),
        bias=bias.astype(dtype),
    )
    out, _ = run(args, return_lse=False, fill=7.0)
    wanted, lse = expected(args)
    wanted = np.where(np.isfinite(lse)[..., None], wanted + message, wanted)
    wanted = wanted.mean(1) if average else wanted.reshape(len(wanted), -1)
    wanted = wanted + bias + (7 if accumulate else 0)
    np.testing.assert_allclose(out, wanted, **TOLERANCE[dtype])


def test_bipartite():
    rng = np.random.default_rng(5)
    indptr, indices = reference.csr(rng.integers(0, 20, 90), rng.integers(0, 9, 90), 20)
    for senders in (9, 50):
        for loops in (False, True):
            args = problem(
                rng, (indptr, indices), 2, 4, "float64", senders=senders, loops=loops
            )
            check(args, "float64")


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_stored_features(storage):
    rng = np.random.default_rng(6)
    args = problem(rng, GRAPHS["power law"], 2, 20, "float32", edge_dim=19, loops=True)
    if storage == "float16":
        stored = args["edges"].astype(np.float16)
        wide = stored.astype(np.float32)
    else:
        stored = (args["edges"].view(np.uint32) >> 16).astype(np.uint16)
        wide = (stored.astype(np.uint32) << 16).view(np.float32)
    exact, _ = run({**args, "edges": wide})
    out, _ = run({**args, "edges": stored})
    np.testing.assert_allclose(out, exact, **TOLERANCE["float32"])


def test_index_types_and_strided_features():
    rng = np.random.default_rng(7)
    args = problem(rng, GRAPHS["random"], 2, 4, "float32")
    out, lse = run(args)
    spread = np.full((2 * len(args["edges"]), 5), np.nan, np.float32)
    spread[::2, 1:4] = args["edges"]
    again = {**args, "indices": args["indices"].astype(np.int32), "edges": spread[::2, 1:4]}
    for one, other in zip(run(again), (out, lse), strict=True):
        np.testing.assert_array_equal(one, other)


def test_threads_and_splits_do_not_change_bits(backend):
    if backend[0] == "python":
        pytest.skip("BLAS decides the order of sums")
    rng = np.random.default_rng(8)
    targets = np.r_[np.full(30_000, 3), rng.integers(0, 500, 20_000)]
    graph = reference.csr(targets, rng.integers(0, 500, len(targets)), 500)
    args = problem(rng, graph, 4, 8, "float32", loops=True)
    first = run(args, threads=1)
    for threads in (2, 3, 7):
        for one, other in zip(run(args, threads=threads), first, strict=True):
            np.testing.assert_array_equal(one, other)


def test_large_scores():
    rng = np.random.default_rng(9)
    args = problem(rng, GRAPHS["power law"], 2, 4, "float64")
    args["left"] *= 300
    check(args, "float64")


def test_nan_stays_with_its_receivers():
    rng = np.random.default_rng(10)
    args = problem(rng, GRAPHS["random"], 2, 4, "float32")
    clean, _ = run(args)
    args["left"][7, 1, 2] = np.nan
    out, lse = run(args)
    indptr, indices = args["indptr"], args["indices"]
    hit = np.array([7 in indices[indptr[i] : indptr[i + 1]] for i in range(len(out))])
    assert hit.any()
    assert np.isnan(out[hit, 4:]).all()
    assert np.isnan(lse[hit, 1]).all()
    np.testing.assert_array_equal(out[~hit], clean[~hit])
    np.testing.assert_array_equal(out[:, :4], clean[:, :4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "n", "edge_dim"), [(1, 1, 2), (3, 200, 0), (2, 5000, 3)])
def test_scores(m, n, edge_dim, dtype):
    rng = np.random.default_rng(11)
    heads, channels, batch = 3, 6, 2
    left = rng.standard_normal((batch, n, heads, channels)).astype(dtype)
    right = rng.standard_normal((batch, m, heads, channels)).astype(dtype)
    edges = rng.standard_normal((batch, 1, n, edge_dim)).astype(dtype)
    edges = np.broadcast_to(edges, (batch, m, n, edge_dim)) if edge_dim else None
    weight = rng.standard_normal((heads * channels, edge_dim)).astype(dtype)
    att = rng.standard_normal((heads, channels)).astype(dtype)
    spec = EdgeSpec(att, 0.2, weight if edge_dim else None)
    out = np.empty((batch, heads, m, n), dtype)
    _kernels.graph.scores(left, right, edges, spec, out, 2)
    x = left[:, None].astype(np.float64) + right[:, :, None]
    if edge_dim:
        x = x + (edges.astype(np.float64) @ weight.T).reshape(x.shape)
    wanted = (att * reference.leaky_relu(x, 0.2)).sum(-1)
    np.testing.assert_allclose(out, np.moveaxis(wanted, -1, 1), **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "dim", "width"), [(0, 3, 4), (1, 5, 70), (4, 130, 3), (7, 33, 31), (230, 17, 81)]
)
def test_project(rows, dim, width, dtype):
    rng = np.random.default_rng(12)
    real = np.float64 if dtype == "float64" else np.float32
    x = rng.standard_normal((rows, dim)).astype(np.float32 if dtype == "bfloat16" else dtype)
    wide = x.astype(np.float64)
    if dtype == "bfloat16":
        x = (x.view(np.uint32) >> 16).astype(np.uint16)
        wide = (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    weight = rng.standard_normal((width, dim)).astype(real)
    spread = np.zeros((rows, width + 3), real)
    _kernels.graph.project(x, weight, spread[:, 2:-1], 2)
    tolerance = TOLERANCE["float64" if real is np.float64 else "float32"]
    np.testing.assert_allclose(spread[:, 2:-1], wide @ weight.T, **tolerance)
    assert not spread[:, :2].any()
    assert not spread[:, -1].any()


@given(st.lists(st.integers(0, 6), max_size=40))
def test_group(keys):
    array = np.array(keys, np.int64)
    indptr, order = np.empty(9, np.int64), np.empty(len(keys), np.int64)
    _kernels.graph.group(array, indptr, order)
    np.testing.assert_array_equal(order, np.argsort(array, kind="stable"))
    np.testing.assert_array_equal(np.diff(indptr), np.bincount(array, minlength=8))
    assert indptr[0] == 0


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("max_hops", [-1, 0, 1, 3])
def test_hops(name, max_hops):
    indptr, indices = GRAPHS[name]
    indices = indices[indices < len(indptr) - 1] if name == "no nodes" else indices
    n = len(indptr) - 1
    sources = np.arange(0, n, 17)
    out = np.empty(n, np.int64)
    _kernels.graph.hops(indptr, indices, sources, max_hops, out)
    limit = None if max_hops < 0 else max_hops
    np.testing.assert_array_equal(out, reference.hop_distances(indptr, indices, sources, limit))

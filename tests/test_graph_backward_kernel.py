"""The kernels under the gradient of graph attention: every backend against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference_graph as forward
import reference_graph_backward as reference

from ruvector import _kernels
from ruvector._kernels.spec import EdgeSpec

pytestmark = pytest.mark.usefixtures("backend")

# Of the largest entry of a gradient; sums over some thousand edges of a hub.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
GRAPHS = forward.graphs()
NAMES = ("left", "messages", "right", "edges", "bias", "att", "weight")


def problem(graph, heads, channels, dtype, *, edge_dim=3, split=False, seed=0, slope=0.2):
    """Return the arguments of ``attend_backward`` but for the results, as a dict."""
    rng = np.random.default_rng(seed)
    indptr, indices = graph
    n, senders = len(indptr) - 1, max(len(indptr) - 1, int(indices.max(initial=-1)) + 1)

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    left, right = normal(senders, heads, channels), normal(n, heads, channels)
    edges = normal(len(indices), edge_dim) if edge_dim else None
    spec = EdgeSpec(
        att=normal(heads, channels),
        negative_slope=slope,
        edge_weight=normal(heads * channels, edge_dim) if edge_dim else None,
        shift=normal(heads, channels),
    )
    # Not in L, which no score may exceed.
    bias = -np.abs(normal(len(indices))) if split else None
    _, lse = forward.graph_attention(
        left, right, spec.att, indptr, indices, features=edges,
        edge_weight=spec.edge_weight, shift=spec.shift, negative_slope=slope,
    )  # fmt: skip
    return {
        "left": left,
        "messages": normal(senders, heads, channels) if split else left,
        "right": right,
        "edges": edges,
        "bias": bias,
        "spec": spec,
        "indptr": indptr,
        "indices": indices.astype(np.int64),
        # As if a sender more had the weight 1 - e^-2.
        "lse": lse.astype(dtype) + (2 if split else 0),
        "delta": normal(n, heads),
        "grad_sums": normal(n, heads, channels),
    }


def run(case, threads=1):
    """Run the kernels in use, into arrays of NaN; by the names of `reference`."""
    split = case["messages"] is not case["left"]
    shapes = {name: case[name] for name in ("left", "right", "edges", "bias")}
    shapes |= {
        "messages": case["messages"] if split else None,
        "att": case["spec"].att,
        "weight": case["spec"].edge_weight,
    }
    results = {
        name: None if x is None else np.full(x.shape, np.nan, x.dtype)
        for name, x in shapes.items()
    }
    _kernels.graph_backward.attend_backward(
        **case, **{f"grad_{name}": x for name, x in results.items()}, threads=threads
    )
    return results


def expected(case):
    def wide(x):
        return None if x is None else np.asarray(x, np.float64)

    spec = case["spec"]
    names = ("indptr", "indices", "lse", "delta", "grad_sums")
    result = reference.gradients(
        *(wide(x) for x in (case["left"], case["messages"], case["right"], spec.att)),
        *(case[name] if name.startswith("ind") else wide(case[name]) for name in names),
        features=wide(case["edges"]),
        edge_weight=wide(spec.edge_weight),
        bias=wide(case["bias"]),
        shift=wide(spec.shift),
        negative_slope=spec.negative_slope,
    )
    if case["messages"] is case["left"]:
        result["left"] += result["messages"]
    return result


def check(case, dtype):
    got, wanted = run(case), expected(case)
    for name in NAMES:
        if got[name] is None:
            continue
        bound = TOLERANCE[dtype] * max(1.0, np.abs(wanted[name]).max(initial=0))
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=bound, err_msg=name)
    return got


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name, split, dtype):
    heads, channels = (1, 3) if name == "hub" else (3, 5)
    check(problem(GRAPHS[name], heads, channels, dtype, split=split), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("heads", "channels", "edge_dim"),
    [(8, 16, 16), (1, 1, 1), (17, 2, 5), (2, 33, 0), (3, 48, 7), (5, 8, 2), (2, 4, 67)],
)
def test_widths(heads, channels, edge_dim, dtype):
    case = problem(GRAPHS["random"], heads, channels, dtype, edge_dim=edge_dim, split=True)
    check(case, dtype)


@pytest.mark.parametrize("slope", [0.0, 1.0, -0.5, 3.0])
def test_slopes(slope):
    check(problem(GRAPHS["random"], 2, 9, "float64", slope=slope), "float64")


def test_threads_do_not_change_bits(backend):
    for name in ("hub", "power law"):
        case = problem(GRAPHS[name], 4, 16, "float32", edge_dim=8)
        one = run(case)
        for threads in (2, 8):
            other = run(case, threads)
            for key, x in one.items():
                if x is not None and backend[0] == "native":
                    np.testing.assert_array_equal(other[key], x)


def test_hubs_that_send_and_receive_are_cut():
    # More than two items of edges in a row of either order.
    n, edges = 4, 9000
    graph = forward.csr(np.zeros(edges, int), np.arange(edges) % n, n)
    back = forward.csr(np.arange(edges) % n, np.zeros(edges, int), n)
    for case in (problem(graph, 1, 3, "float64"), problem(back, 1, 3, "float64")):
        check(case, "float64")


def test_receiver_without_a_softmax_has_no_gradient():
    case = problem(GRAPHS["random"], 2, 5, "float64")
    row = 3
    start, stop = case["indptr"][row : row + 2]
    assert stop > start
    case["lse"][row] = -np.inf
    got = check(case, "float64")
    assert (got["right"][row] == 0).all()
    assert (got["edges"][start:stop] == 0).all()


def test_no_weight_exceeds_one_where_rounding_exceeds_a_logarithm():
    case = problem(GRAPHS["random"], 2, 9, "float32")
    results = []
    for excess in (1e3, 2e3):
        results.append(run(case | {"lse": case["lse"] - np.float32(excess)}))
    for name in NAMES:
        if results[0][name] is not None:
            assert np.isfinite(results[0][name]).all()
            np.testing.assert_array_equal(results[0][name], results[1][name])


def test_nan_stays_with_its_neighbours():
    case = problem(GRAPHS["chain"], 2, 16, "float32")
    clean = run(case)
    case["grad_sums"][10] = np.nan
    got = run(case)
    assert np.isnan(got["right"][10]).all()
    assert np.isnan(got["left"][9]).all()
    for name, row in (("right", 10), ("left", 9), ("edges", 9)):
        keep = np.arange(len(got[name])) != row
        np.testing.assert_array_equal(got[name][keep], clean[name][keep])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 5, 16])
@pytest.mark.parametrize("missing", [0, 11])
@pytest.mark.parametrize("name", ["random", "no edges", "only loops", "power law", "star, in"])
def test_loop_features(name, missing, width, dtype):
    indptr, indices = GRAPHS[name]
    nodes = max(0, len(indptr) - 1 - missing)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((len(indices), width)).astype(dtype)
    wanted, owners = [], []
    for i, edges in enumerate(forward.rows_of(indptr, indices)):
        kept = [e for j, e in edges if j != i]
        wanted += [features[e] for e in kept]
        owners += [{e: 1.0} for e in kept]
        if i < nodes:
            wanted.append(np.mean(features[kept], axis=0) if kept else np.zeros(width))
            owners.append(dict.fromkeys(kept, 1 / max(1, len(kept))))
    out = np.full((len(wanted), width), np.nan, dtype)
    rows = (indptr, indices.astype(np.int64), nodes)
    _kernels.graph_backward.loop_features(features, *rows, out)
    np.testing.assert_allclose(out, np.reshape(wanted, out.shape), rtol=0, atol=1e-6)
    grad = rng.standard_normal(out.shape).astype(dtype)
    true = np.zeros(features.shape)
    for row, shares in zip(grad, owners, strict=True):
        for e, share in shares.items():
            true[e] += share * row
    got = np.full(features.shape, np.nan, dtype)
    _kernels.graph_backward.loop_features_gradient(grad, *rows, got)
    np.testing.assert_allclose(got, true, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("rows", "dim", "width"),
    [(0, 3, 4), (1, 1, 1), (97, 16, 97), (100, 5, 7), (500, 33, 96), (1000, 130, 200)],
)
def test_weight_gradient(rows, dim, width, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, dim + 3)).astype(dtype)[:, :dim]
    grad = rng.standard_normal((rows, width)).astype(dtype)
    results = []
    for threads in (1, 3):
        out = np.full((width, dim), np.nan, dtype)
        _kernels.graph_backward.weight_gradient(x, grad, out, threads)
        results.append(out)
    wanted = grad.astype(np.float64).T @ x
    bound = TOLERANCE[dtype] * max(1.0, rows) ** 0.5
    np.testing.assert_allclose(results[0], wanted, rtol=0, atol=bound)
    if _kernels.backend == "native":
        np.testing.assert_array_equal(*results)

"""Gradients of EdgeFeaturedAttention: every option against differences of its results."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest

import ruvector
from ruvector import EdgeFeaturedAttention, _gatv2
from ruvector._csr import Looped

pytestmark = pytest.mark.usefixtures("backend")

FLAGS = ("concat_heads", "add_self_loops", "share_weights", "bias", "residual")
CONFIGS = [
    dict(zip(FLAGS, chosen, strict=True))
    for chosen in itertools.product([True, False], repeat=5)
]
SHAPES = {
    "one query": ((4,), (5, 4), (5, 4)),
    "several": ((3, 4), (5, 4), (5, 4)),
    "batch": ((2, 3, 4), (2, 5, 4), (2, 5, 4)),
    "shared memory": ((2, 3, 4), (5, 4), (5, 4)),
    "shared keys": ((2, 3, 4), (1, 5, 4), (2, 5, 4)),
}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def layer(edge_dim=3, dtype="float64", **options):
    made = EdgeFeaturedAttention(
        node_dim=4, edge_dim=edge_dim, num_heads=2, seed=1, dtype=dtype, **options
    )
    for i, array in enumerate(made.parameters().values()):
        array[...] = normal(*array.shape, seed=i)
    return made


def graph(senders=7, receivers=7, edges=20):
    """Rows with loops and duplicates; the last receiver has none."""
    rng = np.random.default_rng(3)
    index = rng.integers(0, senders, edges), rng.integers(0, receivers - 1, edges)
    indptr, indices, _ = ruvector.graph.edges_to_csr(np.stack(index), (senders, receivers))
    return indptr, indices


def loss_of(result, grad_output, grad_lse):
    """Weigh output and L to a scalar; a row of no softmax has no L."""
    output, lse = result
    return (output * grad_output).sum() + np.where(lse == -np.inf, 0, lse * grad_lse).sum()


def check_differences(loss, arrays, gradients, step=1e-6):
    """Compare the slope of a loss along a direction in each array, changed in place."""
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, name
        direction = normal(*array.shape, seed=9)
        before = array.copy()
        values = []
        for sign in (1, -1):
            array[...] = before + sign * step * direction
            values.append(loss())
        array[...] = before
        wanted = (values[0] - values[1]) / (2 * step)
        got = (gradients[name] * direction).sum()
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-7, err_msg=name)


def check_graph(made, arrays, indptr, indices):
    x, features, x_src = (arrays.get(name) for name in ("x", "edge_features", "x_src"))
    grad_output, grad_lse = normal(len(x), made.out_dim), normal(len(x), 2)
    result, gradients = made.compute_graph_with_gradients(
        x, indptr, indices, grad_output, features, x_src=x_src, grad_lse=grad_lse,
        return_lse=True,
    )  # fmt: skip

    def compute():
        return made.compute_graph(x, indptr, indices, features, x_src=x_src, return_lse=True)

    for got, wanted in zip(result, compute(), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-13)
    assert (gradients.x_src is None) == (x_src is None)
    assert (gradients.edge_features is None) == (features is None)
    assert list(gradients.parameters) == list(made.parameters())
    named = {name: gradients[name] for name in arrays} | gradients.parameters
    check_differences(
        lambda: loss_of(compute(), grad_output, grad_lse), arrays | made.parameters(), named
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: ", ".join(k for k in c if c[k]))
def test_graph(config):
    arrays = {"x": normal(7, 4), "edge_features": normal(20, 3)}
    check_graph(layer(**config), arrays, *graph())


@pytest.mark.parametrize("config", CONFIGS[:8])
@pytest.mark.parametrize("sizes", [(5, 7), (7, 5)])
def test_bipartite(config, sizes):
    senders, receivers = sizes
    arrays = {
        "x": normal(receivers, 4),
        "x_src": normal(senders, 4),
        "edge_features": normal(20, 3),
    }
    check_graph(layer(**config), arrays, *graph(senders, receivers))


def test_graph_without_features():
    check_graph(layer(edge_dim=0), {"x": normal(7, 4)}, *graph())
    made = layer()
    check_graph(made, {"x": normal(7, 4)}, *graph())
    check_graph(made, {"x": normal(3, 4)}, np.zeros(4, np.int64), np.zeros(0, np.int64))


def test_graph_of_no_nodes():
    made = layer(residual=True)
    output, gradients = made.compute_graph_with_gradients(
        np.zeros((0, 4)), [0], np.zeros(0, int), np.zeros((0, 4)), np.zeros((0, 3))
    )
    assert output.shape == gradients.x.shape == (0, 4)
    assert gradients.edge_features.shape == (0, 3)
    assert all((x == 0).all() for x in gradients.parameters.values())


def test_graph_objects_and_int32():
    sparse = pytest.importorskip("scipy.sparse")
    made, x, (indptr, indices) = layer(edge_dim=0), normal(7, 4), graph()
    ones = np.ones(len(indices))
    rows = sparse.csr_array((ones, indices.astype(np.int32), indptr.astype(np.int32)))
    rows.resize(7, 7)
    grad = normal(7, 4)
    _, wanted = made.compute_graph_with_gradients(x, rows.indptr, rows.indices, grad)
    _, got = made.compute_graph_with_gradients(x, rows, None, grad)
    np.testing.assert_array_equal(got.x, wanted.x)


def test_loops_replace_those_of_the_graph():
    # Receiver 0 has edges from 1, 0 and 2; receiver 1 none; receiver 2 only its own.
    looped = Looped(np.array([0, 3, 3, 4]), np.array([1, 0, 2, 2]), 3)
    np.testing.assert_array_equal(looped.indptr, [0, 3, 4, 5])
    np.testing.assert_array_equal(looped.indices, [1, 2, 0, 1, 2])
    features = np.array([[1.0], [10.0], [5.0], [7.0]])
    np.testing.assert_array_equal(looped.features(features).ravel(), [1, 5, 3, 0, 0])
    grad = looped.features_gradient(np.array([[1.0], [2.0], [4.0], [8.0], [16.0]]))
    np.testing.assert_array_equal(grad.ravel(), [3, 0, 4, 0])


@pytest.mark.parametrize("parts", ["whole", "cut"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
class TestNodes:
    @pytest.fixture(autouse=True)
    def part_size(self, parts, monkeypatch):
        if parts == "cut":
            monkeypatch.setattr(_gatv2, "_SCORES", 20)

    def check(self, made, arrays, mask=None):
        def compute():
            return made.compute_with_edges(
                arrays["query"], arrays["keys"], arrays["values"],
                arrays.get("edge_features"), mask=arrays.get("mask", mask), return_lse=True,
            )  # fmt: skip

        output, lse = compute()
        grad_output, grad_lse = normal(*output.shape), normal(*lse.shape)
        keywords = {"edge_features": arrays.get("edge_features")}
        result, gradients = made.compute_with_gradients(
            arrays["query"], arrays["keys"], arrays["values"], grad_output,
            mask=arrays.get("mask", mask), grad_lse=grad_lse, return_lse=True, **keywords,
        )  # fmt: skip
        np.testing.assert_array_equal(result[0], output)
        np.testing.assert_array_equal(result[1], lse)
        named = {name: gradients[name] for name in arrays} | gradients.parameters
        check_differences(
            lambda: loss_of(compute(), grad_output, grad_lse),
            arrays | made.parameters(),
            named,
        )
        return gradients

    def arrays(self, shapes):
        names = ("query", "keys", "values")
        return {
            n: normal(*s, seed=i) for i, (n, s) in enumerate(zip(names, shapes, strict=True))
        }

    def test_configs(self, shapes):
        for config in CONFIGS[::3]:
            arrays = self.arrays(shapes) | {"edge_features": normal(*shapes[0][:-1], 5, 3)}
            self.check(layer(**config), arrays)

    def test_features(self, shapes):
        leading = shapes[0][:-1]
        gradients = self.check(layer(), self.arrays(shapes))
        assert gradients.edge_features is None
        for axes in range(len(leading) + 1):
            shape = (*leading[len(leading) - axes :], 5, 3)
            self.check(layer(), self.arrays(shapes) | {"edge_features": normal(*shape)})

    def test_masks(self, shapes):
        leading = shapes[0][:-1]
        features = {"edge_features": normal(5, 3)}
        for axes in range(len(leading) + 1):
            shape = (*leading[len(leading) - axes :], 5)
            self.check(layer(), self.arrays(shapes) | features | {"mask": normal(*shape)})
        hidden = normal(*leading[-1:], 5, seed=4) > 0
        hidden.reshape(-1, 5)[0] = False  # the first query sees nothing
        gradients = self.check(layer(), self.arrays(shapes) | features, hidden)
        assert gradients.mask is None


@pytest.mark.parametrize(
    "mask", [[True, False, True, True, False], [0.5, -np.inf, 1, 2, -np.inf]]
)
def test_hidden_keys_leave_no_trace(mask):
    made, grad = layer(residual=True), normal(3, 4)
    mask = np.array(mask)
    hidden = np.array([False, True, False, False, True])
    results = []
    for filler in (0.0, np.nan, np.inf):
        keys, values, features = normal(5, 4), normal(5, 4), normal(3, 5, 3)
        keys[hidden] = values[hidden] = features[:, hidden] = filler
        _, gradients = made.compute_with_gradients(
            normal(3, 4), keys, values, grad, mask=mask, edge_features=features
        )
        results.append(gradients)
    for name in ("query", "keys", "values", "edge_features", "mask"):
        for other in results[1:]:
            if results[0][name] is not None:
                np.testing.assert_allclose(other[name], results[0][name], rtol=0, atol=1e-14)
    for name, gradient in results[0].parameters.items():
        for other in results[1:]:
            np.testing.assert_allclose(other.parameters[name], gradient, rtol=0, atol=1e-13)
    assert (results[1]["keys"][hidden] == 0).all()
    assert (results[1]["edge_features"][:, hidden] == 0).all()


def test_node_of_nan_without_edges_leaves_no_trace():
    made, (indptr, indices) = layer(add_self_loops=False), graph()
    x, features, grad = normal(7, 4), normal(20, 3), normal(7, 4)
    assert indptr[6] == indptr[7]
    indices[indices == 6] = 0
    _, wanted = made.compute_graph_with_gradients(x, indptr, indices, grad, features)
    x[6] = np.nan
    _, got = made.compute_graph_with_gradients(x, indptr, indices, grad, features)
    np.testing.assert_array_equal(got.x, wanted.x)
    for name, gradient in wanted.parameters.items():
        np.testing.assert_array_equal(got.parameters[name], gradient)


def test_empty_batches():
    made = layer()
    for shape in ((0, 4), (0, 3, 4), (2, 0, 4)):
        output, gradients = made.compute_with_gradients(
            np.zeros(shape), normal(5, 4), normal(5, 4), np.zeros(shape),
            edge_features=normal(5, 3),
        )  # fmt: skip
        assert output.shape == gradients.query.shape == shape
        assert gradients.keys.shape == (5, 4)
        assert (gradients.keys == 0).all()
        assert gradients.edge_features.shape == (5, 3)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_dtypes(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    small, wide = layer(dtype="float32"), layer(dtype="float64")
    wide.load_state_dict(small.state_dict())
    x, features, grad = normal(7, 4).astype(dtype), normal(20, 3).astype(dtype), normal(7, 4)
    indptr, indices = graph()
    _, got = small.compute_graph_with_gradients(x, indptr, indices, grad, features)
    _, true = wide.compute_graph_with_gradients(
        x.astype(np.float64), indptr, indices, grad, features.astype(np.float64)
    )
    error = 1e-5 if dtype == "float32" else 0.02
    for name in ("x", "edge_features"):
        assert got[name].dtype == dtype
        scale = np.abs(true[name]).max()
        assert np.abs(got[name].astype(np.float64) - true[name]).max() < error * scale
    for name, gradient in got.parameters.items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, true.parameters[name], rtol=1e-4, atol=1e-4)
    _, nodes = small.compute_with_gradients(
        x[0], x, x, grad[0].astype(dtype), edge_features=features[:7]
    )
    assert nodes.keys.dtype == nodes.edge_features.dtype == dtype


def test_threads_do_not_change_bits(backend):
    if backend[0] == "python":
        pytest.skip("BLAS may")
    made = EdgeFeaturedAttention(node_dim=32, edge_dim=5, num_heads=4, seed=0)
    rng = np.random.default_rng(0)
    indptr, indices, _ = ruvector.graph.edges_to_csr(rng.integers(0, 3000, (2, 30_000)), 3000)
    x, features = normal(3000, 32, dtype="float32"), normal(30_000, 5, dtype="float32")
    results = []
    for threads in (1, 2, 8):
        with ruvector.num_threads(threads):
            results.append(
                made.compute_graph_with_gradients(x, indptr, indices, x, features)[1]
            )
    for other in results[1:]:
        np.testing.assert_array_equal(other.x, results[0].x)
        np.testing.assert_array_equal(other.edge_features, results[0].edge_features)
        for name, gradient in results[0].parameters.items():
            np.testing.assert_array_equal(other.parameters[name], gradient)


def test_one_wide_features_may_lack_their_axis():
    made, (indptr, indices) = layer(edge_dim=1), graph()
    _, gradients = made.compute_graph_with_gradients(
        normal(7, 4), indptr, indices, normal(7, 4), normal(20)
    )
    assert gradients.edge_features.shape == (20,)


def test_out_may_overlap_and_survives_errors():
    made, (indptr, indices) = layer(), graph()
    x, features, grad = normal(7, 4), normal(20, 3), normal(7, 4, seed=2)
    wanted, true = made.compute_graph_with_gradients(x, indptr, indices, grad, features)
    for overlapped in ("x", "grad"):
        given = {"x": x.copy(), "grad": grad.copy()}
        out = given[overlapped]
        got, gradients = made.compute_graph_with_gradients(
            given["x"], indptr, indices, given["grad"], features, out=out
        )
        assert got is out
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(gradients.x, true.x)
    before = out.copy()
    for wrong in ({"grad_output": normal(7, 3)}, {"grad_lse": normal(7)}):
        keywords = {"grad_output": grad, **wrong}
        with pytest.raises(ruvector.DimensionMismatchError, match=next(iter(wrong))):
            made.compute_graph_with_gradients(
                x, indptr, indices, edge_features=features, out=out, **keywords
            )
    with pytest.raises(ruvector.DimensionMismatchError, match="values must have the width"):
        made.compute_with_gradients(x[0], x, x[:, :2], grad[0])
    np.testing.assert_array_equal(out, before)


def test_keywords_are_those_of_the_forward_calls():
    def names(function):
        return set(inspect.signature(function).parameters)

    made = layer()
    extra = {"grad_output", "grad_lse"}
    assert names(made.compute_graph_with_gradients) == names(made.compute_graph) | extra
    assert names(made.compute_with_gradients) == names(made.compute_with_edges) | extra


def test_gradients_by_name():
    made, (indptr, indices) = layer(), graph()
    _, gradients = made.compute_graph_with_gradients(
        normal(7, 4), indptr, indices, normal(7, 4)
    )
    assert gradients["x"] is gradients.x
    with pytest.raises(KeyError):
        gradients["weights"]

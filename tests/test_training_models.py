"""Adapters and encoders: what they compute, and their gradients by central differences."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector
from ruvector.errors import DimensionMismatchError, InvalidConfigError
from ruvector.training import (
    GraphEncoder,
    LinearAdapter,
    MemoryEncoder,
    Model,
    PairEncoder,
    PairModel,
    Trainer,
    TrainerConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


def check_gradients(model, x, tolerance=1e-6):
    """Compare backward with central differences of sum(encode(x) * w), in float64."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal(model.encode(x).shape)
    model.encode(x)
    gradients = model.backward(weights)
    parameters = model.parameters()
    assert gradients.keys() == parameters.keys()
    for name, array in parameters.items():
        assert gradients[name].shape == array.shape
        assert gradients[name].dtype == array.dtype
        # A parameter in float32 moves by what it can hold.
        step, near = (1e-5, tolerance) if array.dtype == np.float64 else (2.0**-8, 2e-3)
        for index in rng.permutation(array.size)[:25]:
            place = np.unravel_index(index, array.shape)
            before, places, ends = array[place], [], []
            for change in (step, -step):
                array[place] = before + change
                places.append(float(array[place]))
                ends.append((model.encode(x) * weights).sum())
            array[place] = before
            numeric = (ends[0] - ends[1]) / (places[0] - places[1])
            assert gradients[name][place] == pytest.approx(numeric, rel=near * 10, abs=near)


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    for array in model.parameters().values():
        array += 0.3 * rng.standard_normal(array.shape)
    return model


class TestLinearAdapter:
    @pytest.mark.parametrize("dims", [(5, 5), (33, 7), (7, 33), (1, 1)])
    @pytest.mark.parametrize("rank", [None, 1])
    def test_starts_as_the_identity(self, dims, rank):
        x = np.random.default_rng(0).standard_normal((4, dims[0])).astype(np.float32)
        expected = np.zeros((4, dims[1]), np.float32)
        kept = min(dims)
        expected[:, :kept] = x[:, :kept]
        got = LinearAdapter(*dims, rank).encode(x)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)

    @pytest.mark.parametrize("dims", [(17, 17), (33, 16), (6, 31)])
    @pytest.mark.parametrize("rank", [None, 4])
    def test_encode_and_gradients(self, dims, rank):
        adapter = randomised(LinearAdapter(*dims, rank, dtype="float64"))
        x = np.random.default_rng(1).standard_normal((9, dims[0]))
        p = adapter.parameters()
        weight = p["weight"] if rank is None else np.eye(dims[1], dims[0]) + p["up"] @ p["down"]
        np.testing.assert_allclose(adapter.encode(x), x @ weight.T, rtol=1e-12, atol=1e-12)
        check_gradients(adapter, x)

    def test_dtypes(self):
        x = np.random.default_rng(0).standard_normal((3, 8))
        for dtype, given, expected in (
            ("float32", np.float16, np.float32),
            ("float32", np.float32, np.float32),
            ("float32", np.float64, np.float64),
            ("float64", np.float32, np.float64),
            ("float64", np.float16, np.float64),
        ):
            adapter = randomised(LinearAdapter(8, 5, dtype=dtype))
            got = adapter.encode(x.astype(given))
            assert got.dtype == expected
            reference = x.astype(given).astype(float) @ adapter.parameters()["weight"].T
            np.testing.assert_allclose(got, reference, rtol=1e-4, atol=1e-5)
            gradient = adapter.backward(np.ones((3, 5), expected))["weight"]
            assert gradient.dtype == dtype
            sums = x.astype(given).astype(float).sum(axis=0)
            np.testing.assert_allclose(gradient, np.tile(sums, (5, 1)), rtol=1e-3, atol=1e-4)

    def test_one_vector_lists_and_strides(self):
        adapter = randomised(LinearAdapter(4, 3))
        x = np.arange(32, dtype=np.float32).reshape(4, 8)[:, ::2]
        rows = adapter.encode(x)
        assert rows.shape == (4, 3)
        np.testing.assert_allclose(adapter.encode(x[1]), rows[1], rtol=1e-6)
        np.testing.assert_array_equal(adapter.encode(x.tolist()), rows)
        assert adapter.encode(x[:0]).shape == (0, 3)

    def test_threads_do_not_matter(self):
        x = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
        results = []
        for threads in (1, 2):
            with ruvector.num_threads(threads):
                adapter = randomised(LinearAdapter(64, 48))
                encoded = adapter.encode(x)
                results.append((encoded, adapter.backward(encoded)["weight"]))
        if ruvector.backend() == "native":
            np.testing.assert_array_equal(results[0][0], results[1][0])
            np.testing.assert_array_equal(results[0][1], results[1][1])

    def test_state(self):
        adapter, other = randomised(LinearAdapter(6, 5, 2)), LinearAdapter(6, 5, 2)
        state = adapter.state_dict()
        other.load_state_dict(state)
        x = np.ones((2, 6), np.float32)
        np.testing.assert_array_equal(adapter.encode(x), other.encode(x))
        state["up"][:] = 0
        assert adapter.parameters()["up"].any()
        with pytest.raises(InvalidConfigError, match="state must hold"):
            other.load_state_dict({"weight": np.ones((5, 6))})
        with pytest.raises(DimensionMismatchError, match=r"down must have shape \(2, 6\)"):
            other.load_state_dict({"up": np.ones((5, 3)), "down": np.ones((3, 6))})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 3), "dim_in must be an integer of at least 1"),
            ((3, 2.5), "dim_out must be an integer of at least 1"),
            ((3, 2, 3), "rank must be at most 2, got 3"),
            ((3, 2, 0), "rank must be an integer of at least 1"),
        ],
    )
    def test_bad_configuration(self, arguments, message):
        with pytest.raises(InvalidConfigError, match=message):
            LinearAdapter(*arguments)

    def test_bad_input(self):
        adapter = LinearAdapter(3, 2)
        with pytest.raises(InvalidConfigError, match="backward needs an encode before it"):
            adapter.backward(np.ones((1, 2)))
        with pytest.raises(DimensionMismatchError, match=r"x must have shape \(n, 3\)"):
            adapter.encode(np.ones((2, 4)))
        adapter.encode(np.ones((2, 3)))
        with pytest.raises(DimensionMismatchError, match=r"grad must have shape \(2, 2\)"):
            adapter.backward(np.ones((3, 2)))
        with pytest.raises(InvalidConfigError, match="dtype must be"):
            LinearAdapter(3, 2, dtype="float16")


ATTENTIONS = {
    "dot-product": lambda: ruvector.DotProductAttention(8),
    "multi-head": lambda: ruvector.MultiHeadAttention(8, 2),
    "flash": lambda: ruvector.FlashAttention(8),
    "linear": lambda: ruvector.LinearAttention(8, 16),
    "hyperbolic": lambda: ruvector.HyperbolicAttention(
        8, inputs="tangent", learn_curvature=True, learn_temperature=True
    ),
    "dual-space": lambda: ruvector.DualSpaceAttention.simple(4, 4, 2, 1.0),
    "graph-rope": lambda: ruvector.GraphRoPEAttention.simple(8, 32),
    "moe": lambda: ruvector.MoEAttention.simple(8, 3, 2),
    "edge-featured": lambda: ruvector.EdgeFeaturedAttention(
        node_dim=8, edge_dim=0, num_heads=2, dtype="float64", seed=3
    ),
}


class TestMemoryEncoder:
    @pytest.mark.parametrize("kind", ATTENTIONS)
    def test_gradients(self, kind):
        rng = np.random.default_rng(5)
        keys, values = 0.4 * rng.standard_normal((2, 11, 8))
        x = 0.4 * rng.standard_normal((3, 8))
        attention = ATTENTIONS[kind]()
        encoder = MemoryEncoder(attention, keys, values)
        np.testing.assert_array_equal(encoder.encode(x), attention.compute(x, keys, values))
        names = set(encoder.parameters())
        assert names >= {"keys", "values"}
        check_gradients(encoder, x)

    def test_learns_copies_or_reads_in_place(self):
        keys, values = np.random.default_rng(0).standard_normal((2, 6, 4), dtype=np.float32)
        encoder = MemoryEncoder(ruvector.DotProductAttention(4), keys, values, learn_keys=False)
        assert set(encoder.parameters()) == {"values"}
        assert encoder.keys is keys
        assert not np.shares_memory(encoder.values, values)
        encoder.encode(keys)
        assert set(encoder.backward(np.ones((6, 4), np.float32))) == {"values"}
        encoder.parameters()["values"][:] = 2.5
        np.testing.assert_allclose(encoder.encode(keys), 2.5, rtol=1e-6)

    def test_state(self):
        keys, values = np.random.default_rng(0).standard_normal((2, 6, 4), dtype=np.float32)
        encoder = MemoryEncoder(ruvector.DotProductAttention(4), keys, values)
        state = encoder.state_dict()
        encoder.parameters()["keys"][:] = 0
        encoder.load_state_dict(state)
        np.testing.assert_array_equal(encoder.keys, keys)
        with pytest.raises(InvalidConfigError, match="state must hold"):
            encoder.load_state_dict({"keys": keys})
        with pytest.raises(DimensionMismatchError, match="keys must have shape"):
            encoder.load_state_dict({"keys": keys[:2], "values": values})
        np.testing.assert_array_equal(encoder.values, values)

    def test_bad_input(self):
        attention = ruvector.DotProductAttention(4)
        with pytest.raises(InvalidConfigError, match="attention must be an Attention"):
            MemoryEncoder("dot-product", np.ones((2, 4)), np.ones((2, 4)))
        with pytest.raises(DimensionMismatchError, match=r"keys must have shape \(n, 4\)"):
            MemoryEncoder(attention, np.ones((2, 3)), np.ones((2, 3)))
        with pytest.raises(
            DimensionMismatchError, match=r"values must have shape \(2, dim_v\)"
        ):
            MemoryEncoder(attention, np.ones((2, 4)), np.ones((3, 4)))
        with pytest.raises(InvalidConfigError, match="nothing to learn"):
            MemoryEncoder(
                attention,
                np.ones((2, 4)),
                np.ones((2, 4)),
                learn_keys=False,
                learn_values=False,
            )


class TestGraphEncoder:
    @pytest.fixture
    def encoder(self):
        rng = np.random.default_rng(2)
        edges = np.array([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 2]])
        indptr, indices, order = ruvector.graph.edges_to_csr(edges, 6)
        attention = ruvector.EdgeFeaturedAttention(
            node_dim=5, edge_dim=2, num_heads=2, out_dim=6, dtype="float64", seed=1
        )
        features = rng.standard_normal((edges.shape[1], 2))[order]
        x = rng.standard_normal((6, 5))
        return GraphEncoder(attention, x, indptr, indices, features, learn_x=True)

    def test_encodes_rows_of_the_graph(self, encoder):
        indptr, indices, features = encoder._graph
        whole = encoder.attention.compute_graph(encoder._x, indptr, indices, features)
        np.testing.assert_array_equal(encoder.encode([3, 0, 3]), whole[[3, 0, 3]])

    def test_gradients_with_repeated_nodes(self, encoder):
        check_gradients(encoder, [3, 0, 3, 5])

    def test_learns_neighbours(self, encoder):
        trainer = Trainer(
            encoder, config=TrainerConfig(batch_size=3, num_epochs=40, learning_rate=0.02)
        )
        history = trainer.fit(np.arange(6), np.array([1, 2, 3, 4, 0, 3]))
        assert np.mean(history.loss[-4:]) < 0.5 * np.mean(history.loss[:4])

    def test_bad_input(self, encoder):
        with pytest.raises(InvalidConfigError, match="x must be from 0 to 5, got 1 to 6"):
            encoder.encode([1, 6])
        with pytest.raises(TypeError, match="x must hold integers"):
            encoder.encode([0.5])
        with pytest.raises(InvalidConfigError, match="backward needs an encode before it"):
            encoder.backward(np.ones((1, 6)))
        encoder.encode([1, 2])
        with pytest.raises(DimensionMismatchError, match=r"grad must have shape \(2, 6\)"):
            encoder.backward(np.ones((1, 6)))
        with pytest.raises(InvalidConfigError, match="attention must be an EdgeFeatured"):
            GraphEncoder(ruvector.DotProductAttention(3), np.ones((2, 3)), [0, 0, 0], [])


class TestPairEncoder:
    def test_parts(self):
        pair = PairEncoder(LinearAdapter(4, 3), LinearAdapter(5, 3, 2))
        assert isinstance(pair, PairModel)
        assert not isinstance(pair, Model)
        assert isinstance(LinearAdapter(4, 3), Model)
        x, y = np.ones((2, 4), np.float32), np.ones((6, 5), np.float32)
        a, p = pair.encode_anchors(x), pair.encode_positives(y)
        gradients = pair.backward_pair(a, p)
        assert gradients.keys() == pair.parameters().keys()
        np.testing.assert_array_equal(
            gradients["anchors.weight"], pair.anchors.backward(a)["weight"]
        )

    def test_a_state_that_fits_one_half_changes_nothing(self):
        pair = PairEncoder(LinearAdapter(2, 2), LinearAdapter(2, 2))
        state = {"anchors.weight": np.ones((2, 2)), "positives.weight": np.ones((3, 2))}
        with pytest.raises(DimensionMismatchError):
            pair.load_state_dict(state)
        np.testing.assert_array_equal(pair.anchors.parameters()["weight"], np.eye(2))
        with pytest.raises(InvalidConfigError, match="state must not hold 'other'"):
            pair.load_state_dict({"other": np.ones(2)})

    def test_bad_models(self):
        adapter = LinearAdapter(2, 2)
        with pytest.raises(InvalidConfigError, match="must be two models"):
            PairEncoder(adapter, adapter)
        with pytest.raises(InvalidConfigError, match="positives must be a model"):
            PairEncoder(adapter, "adapter")

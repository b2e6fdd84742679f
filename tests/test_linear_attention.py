"""LinearAttention: what it computes, its projection, its errors."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from linear_classes import DIM, FEATURES, KERNELS, near, normal, reference, unit

import ruvector
from ruvector import LinearAttention

pytestmark = pytest.mark.usefixtures("backend")

kernels = pytest.mark.parametrize("kernel", KERNELS)


@kernels
class TestCompute:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_output_lse_and_weights(self, kernel, causal, dtype):
        attention = LinearAttention(DIM, FEATURES, kernel, causal=causal)
        for m, n in ((1, 1), (5, 33), (33, 5), (70, 70), (3, 300)):
            q, k, v = (normal(r, w, dtype=dtype) for r, w in ((m, DIM), (n, DIM), (n, 7)))
            out, lse, weights = attention.compute(q, k, v, return_lse=True, return_weights=True)
            expected = reference(attention, q, k, v)
            for got, wanted in zip((out, lse, weights), expected, strict=True):
                assert got.dtype == dtype
                near(got, wanted, dtype)

    def test_one_query(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel, causal=True)
        q, k, v = normal(1, DIM), normal(30, DIM), normal(30, 5)
        out, lse, weights = attention.compute(
            q[0], list(k), v, return_lse=True, return_weights=True
        )
        expected = reference(attention, q, k, v)
        assert (out.shape, np.shape(lse), weights.shape) == ((5,), (), (30,))
        for got, wanted in zip((out, lse, weights), expected, strict=True):
            near(got, wanted[0])

    @pytest.mark.parametrize("causal", [False, True])
    def test_batches(self, kernel, causal):
        attention = LinearAttention(DIM, FEATURES, kernel, causal=causal)
        q, k, v = normal(3, 9, DIM), normal(3, 9, DIM, seed=1), normal(3, 9, 5)
        one_each, lse = attention.compute(q, k, v, return_lse=True)
        shared, weights = attention.compute(q, k[0], v[0], return_weights=True)
        for b in range(3):
            near(one_each[b], reference(attention, q[b], k[b], v[b])[0])
            near(lse[b], reference(attention, q[b], k[b], v[b])[1])
            near(shared[b], reference(attention, q[b], k[0], v[0])[0])
            near(weights[b], reference(attention, q[b], k[0], v[0])[2])

    @pytest.mark.parametrize("causal", [False, True])
    def test_masks(self, kernel, causal):
        attention = LinearAttention(DIM, FEATURES, kernel, causal=causal)
        q, k, v = normal(40, DIM), normal(40, DIM, seed=1), normal(40, 5)
        seen = normal(40) > 0
        floats = np.where(seen, normal(40, seed=1), -np.inf)
        k[~seen] = np.nan
        v[~seen] = np.inf
        for mask in (seen, floats.astype(np.float32), list(seen)):
            out, lse, weights = attention.compute(
                q, k, v, mask=mask, return_lse=True, return_weights=True
            )
            expected = reference(attention, q, k, v, np.asarray(mask))
            for got, wanted in zip((out, lse, weights), expected, strict=True):
                near(got, wanted)
        near(attention.compute_with_mask(q, k, v, seen), attention.compute(q, k, v, mask=seen))
        batch = np.stack([q, q[::-1]])
        near(
            attention.compute(batch, k, v, mask=seen)[0], attention.compute(q, k, v, mask=seen)
        )

    def test_everything_hidden(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        out, lse, weights = attention.compute(
            normal(3, DIM), normal(9, DIM), normal(9, 5), mask=np.zeros(9, bool),
            return_lse=True, return_weights=True,
        )  # fmt: skip
        assert (out == 0).all()
        assert (weights == 0).all()
        assert (lse == -np.inf).all()

    def test_no_queries(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        mask = np.ones(4, bool)
        for shape in ((0, DIM), (2, 0, DIM), (0, 3, DIM)):
            out, lse, weights = attention.compute(
                np.zeros(shape), normal(4, DIM), normal(4, 5), mask=mask, return_lse=True,
                return_weights=True,
            )  # fmt: skip
            assert out.shape == (*shape[:-1], 5)
            assert lse.shape == shape[:-1]
            assert weights.shape == (*shape[:-1], 4)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_storage_types(self, kernel, dtype):
        low = np.dtype(
            pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        )
        attention = LinearAttention(DIM, FEATURES, kernel)
        q, k, v = (x.astype(low) for x in (normal(9, DIM), normal(50, DIM), normal(50, 5)))
        out, lse, weights = attention.compute(q, k, v, return_lse=True, return_weights=True)
        assert (out.dtype, lse.dtype, weights.dtype) == (low, np.float32, np.float32)
        wide = [x.astype(np.float64) for x in (q, k, v)]
        expected = reference(attention, *wide)
        bound = 2e-2 if dtype == "bfloat16" else 2e-3
        np.testing.assert_allclose(out.astype(float), expected[0], rtol=bound, atol=bound)
        near(lse, expected[1])
        near(weights, expected[2])
        attention.prefill(k, v)
        one = attention.attend(q[0])
        assert one.dtype == low
        np.testing.assert_allclose(one.astype(float), expected[0][0], rtol=bound, atol=bound)

    def test_strides_lists_and_torch(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        q, k, v = normal(9, DIM), normal(50, DIM), normal(50, DIM, seed=1)
        expected = attention.compute(q, k, v)
        wide = np.repeat(k, 2, axis=0)[::2]
        near(attention.compute(q.tolist(), wide, np.asfortranarray(v)), expected)
        near(attention.compute(q[::-1], k[::-1], v[::-1])[::-1], expected)
        torch = pytest.importorskip("torch")
        near(attention.compute(*map(torch.from_numpy, (q, k, v))), expected)

    def test_out(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        q, k = normal(9, DIM), normal(9, DIM, seed=1)
        expected = attention.compute(q, k, q)
        assert attention.compute(q, k, q, out=q) is q
        near(q, expected)

    @pytest.mark.parametrize("causal", [False, True])
    def test_out_with_strides_for_a_batch_over_one_memory(self, kernel, causal):
        attention = LinearAttention(DIM, FEATURES, kernel, causal=causal)
        q, k = normal(3, 4, DIM), normal(9, DIM)
        wide = np.zeros((3, 8, 2 * DIM), np.float32)
        out = wide[:, ::2, 3 : 3 + DIM]
        assert attention.compute(q, k, k, out=out) is out
        near(out, attention.compute(q, k, k))

    def test_async(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        arrays = normal(9, DIM), normal(20, DIM), normal(20, 5)
        out = asyncio.run(attention.compute_async(*arrays))
        near(out, attention.compute(*arrays))


class TestApproximation:
    """The features of "softmax" estimate softmax attention."""

    @pytest.mark.parametrize("ortho", [False, True])
    def test_error_falls_with_the_root_of_the_features(self, ortho):
        q, k, v = unit(32, DIM), unit(100, DIM, seed=1), normal(100, 8, dtype=np.float64)
        exact, exact_lse, weights = ruvector.DotProductAttention(DIM).compute(
            q, k, v, return_lse=True, return_weights=True
        )
        counts = 2 ** np.arange(4, 13)
        errors = []
        for count in counts:
            parts = []
            for seed in range(8):
                attention = LinearAttention(DIM, int(count), seed=seed, ortho=ortho)
                out, lse = attention.compute(q, k, v, return_lse=True)
                parts.append([((out - exact) ** 2).mean(), ((lse - exact_lse) ** 2).mean()])
            errors.append(np.sqrt(np.mean(parts, axis=0)))
        for error in np.transpose(errors):
            slope = np.polyfit(np.log(counts), np.log(error), 1)[0]
            assert -0.6 < slope < -0.4
        assert errors[-1][0] < 0.01
        many = LinearAttention(DIM, 4096).compute(q, k, v, return_weights=True)[1]
        np.testing.assert_allclose(many, weights, rtol=0.2)

    def test_orthogonal_rows_are_more_precise(self):
        q, k, v = unit(32, DIM), unit(100, DIM, seed=1), normal(100, 8, dtype=np.float64)
        exact = ruvector.DotProductAttention(DIM).compute(q, k, v)
        errors = [
            np.mean(
                [
                    (LinearAttention(DIM, DIM, seed=s, ortho=ortho).compute(q, k, v) - exact)
                    ** 2
                    for s in range(100)
                ]
            )
            for ortho in (True, False)
        ]
        assert errors[0] < errors[1]

    @pytest.mark.parametrize("norm", [10.0, 1e3, 1e8])
    @pytest.mark.parametrize("causal", [False, True])
    def test_large_norms(self, norm, causal):
        q, k = (norm * unit(50, 64, seed=s).astype(np.float32) for s in (0, 1))
        v = normal(50, 3)
        out, lse = LinearAttention(64, 128, causal=causal).compute(q, k, v, return_lse=True)
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()
        low, high = v.min(axis=0), v.max(axis=0)
        assert (out >= low - 1e-5).all()
        assert (out <= high + 1e-5).all()


class TestProjection:
    def test_seeds(self):
        one, two, three = (LinearAttention(DIM, FEATURES, seed=s) for s in (42, 42, 43))
        default = LinearAttention(DIM, FEATURES)
        rng = LinearAttention(DIM, FEATURES, rng=np.random.default_rng(42))
        p = [x.parameters()["projection"] for x in (one, two, default, rng, three)]
        for other in p[1:4]:
            np.testing.assert_array_equal(p[0], other)
        assert (p[0] != p[4]).all()

    @pytest.mark.parametrize("count", [5, DIM, 40])
    def test_orthogonal_in_blocks_with_lengths_of_normal_vectors(self, count):
        attention = LinearAttention(DIM, count, dtype="float64")
        w = attention.parameters()["projection"]
        assert w.shape == (count, DIM)
        for start in range(0, count, DIM):
            block = w[start : start + DIM]
            gram = block @ block.T
            np.testing.assert_allclose(gram, np.diag(np.diagonal(gram)), atol=1e-12)
        lengths = np.linalg.norm(
            LinearAttention(DIM, 20_000, dtype="float64").parameters()["projection"], axis=1
        )
        np.testing.assert_allclose((lengths**2).mean(), DIM, rtol=0.03)
        np.testing.assert_allclose((lengths**2).var(), 2 * DIM, rtol=0.1)

    def test_directions_are_uniform(self):
        w = np.concatenate(
            [
                LinearAttention(3, 3, seed=s, dtype="float64").parameters()["projection"]
                for s in range(2000)
            ]
        )
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        np.testing.assert_allclose(w.mean(axis=0), 0, atol=0.03)
        np.testing.assert_allclose(w.T @ w / len(w), np.eye(3) / 3, atol=0.02)

    def test_parameters_are_live_and_states_load(self):
        attention, other = (
            LinearAttention(DIM, FEATURES),
            LinearAttention(DIM, FEATURES, seed=1),
        )
        q, k, v = normal(3, DIM), normal(9, DIM), normal(9, 5)
        attention.prefill(k, v)
        state = other.state_dict()
        attention.load_state_dict(state)
        np.testing.assert_array_equal(attention.compute(q, k, v), other.compute(q, k, v))
        assert attention.state is None
        attention.parameters()["projection"][...] = 0
        # Without a direction every key weighs exp(-|k|^2 / 2) for every query.
        constant = attention.compute(q, k, v)
        near(constant[0], constant[1])
        assert LinearAttention(DIM, FEATURES, "elu").parameters() == {}

    def test_float64_parameters_compute_in_float64(self):
        attention = LinearAttention(DIM, FEATURES, dtype="float64")
        q, k, v = normal(3, DIM), normal(9, DIM), normal(9, 5)
        out, lse = attention.compute(q, k, v, return_lse=True)
        assert out.dtype == lse.dtype == np.float32
        expected = reference(attention, q, k, v)
        np.testing.assert_allclose(out, expected[0], rtol=1e-7, atol=1e-7)
        attention.prefill(k, v)
        np.testing.assert_allclose(attention.attend(q), expected[0], rtol=1e-7, atol=1e-7)


class TestObject:
    def test_properties_repr_equality_and_hash(self):
        attention = LinearAttention(8, 32, "relu", seed=7, ortho=False, causal=True)
        assert repr(attention) == (
            "LinearAttention(dim=8, num_features=32, kernel='relu', seed=7, ortho=False, "
            "causal=True)"
        )
        assert attention == eval(repr(attention))
        assert hash(attention) == hash(eval(repr(attention)))
        assert attention != LinearAttention(8, 32, "relu", seed=8, ortho=False, causal=True)
        assert (attention.dim, attention.num_features, attention.kernel) == (8, 32, "relu")
        assert (attention.seed, attention.ortho, attention.causal) == (7, False, True)
        assert LinearAttention(8, 32, rng=np.random.default_rng(0)).seed is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
            ({"num_features": 0}, "num_features must be an integer of at least 1, got 0"),
            ({"num_features": 2.5}, "num_features must be an integer of at least 1, got 2.5"),
            ({"kernel": "rbf"}, "kernel must be 'softmax' or 'relu' or 'elu', got 'rbf'"),
            ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
            ({"ortho": 1}, "ortho must be True or False, got 1"),
            ({"causal": None}, "causal must be True or False, got None"),
            ({"rng": 3}, "rng must be a numpy.random.Generator, got 3"),
            ({"dtype": "float16"}, "dtype must be 'float32' or 'float64', got 'float16'"),
        ],
    )
    def test_wrong_configurations(self, arguments, message):
        with pytest.raises(ruvector.InvalidConfigError) as caught:
            LinearAttention(**{"dim": 8, "num_features": 4} | arguments)
        assert str(caught.value) == message

    def test_a_seed_and_a_generator_exclude_each_other(self):
        for seed in (3, 42):
            with pytest.raises(
                ruvector.InvalidConfigError, match="seed and rng must not both be given"
            ):
                LinearAttention(8, 4, seed=seed, rng=np.random.default_rng())
        assert LinearAttention(8, 4).seed == LinearAttention(8, 4, seed=None).seed == 42

    @pytest.mark.parametrize("mask", [np.ones((3, 9), bool), np.ones((1, 9)), np.ones(())])
    def test_a_mask_is_one_of_keys(self, mask):
        attention = LinearAttention(DIM, FEATURES)
        with pytest.raises(ruvector.InvalidMaskError) as caught:
            attention.compute(normal(3, DIM), normal(9, DIM), normal(9, 5), mask=mask)
        assert str(caught.value) == (
            f"mask must have shape (9,), the same keys for every query, got shape {mask.shape}"
        )

    def test_other_wrong_calls(self):
        attention = LinearAttention(DIM, FEATURES)
        q, k, v = normal(3, DIM), normal(9, DIM), normal(9, 5)
        with pytest.raises(ruvector.InvalidMaskError, match=r"mask must have shape \(9,\)"):
            attention.compute(q, k, v, mask=np.ones(8, bool))
        with pytest.raises(ruvector.InvalidMaskError, match="mask must be bool"):
            attention.compute(q, k, v, mask=np.ones(9, int))
        with pytest.raises(ruvector.EmptyInputError, match="keys must hold at least one"):
            attention.compute(q, k[:0], v[:0])
        with pytest.raises(ruvector.EmptyInputError, match="prefill or append first"):
            attention.attend(q)
        attention.prefill(k, v)
        for wrong in (normal(3, 5), normal(2, 2, 2, DIM), np.float32(1)):
            with pytest.raises(ruvector.DimensionMismatchError, match="query must have shape"):
                attention.attend(wrong)
        with pytest.raises(TypeError, match="query must hold real numbers"):
            attention.attend(np.zeros(DIM, complex))

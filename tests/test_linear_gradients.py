"""Gradients of linear attention as a class and as a function."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from class_gradient_cases import check_dtype, check_results

import ruvector
from ruvector.functional import linear_attention_backward

pytestmark = pytest.mark.usefixtures("backend")

KERNELS = ("softmax", "relu", "elu")
SHAPES = {
    "one query": ((4,), (5, 4), (5, 2)),
    "several": ((3, 4), (5, 4), (5, 2)),
    "batch": ((2, 3, 4), (2, 5, 4), (2, 5, 2)),
    "shared memory": ((2, 3, 4), (5, 4), (5, 2)),
    "shared keys": ((2, 3, 4), (5, 4), (2, 5, 2)),
    "memory with one entry": ((2, 3, 4), (1, 5, 4), (5, 2)),
}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def linear(kernel="softmax", causal=False, **options):
    return ruvector.LinearAttention(4, 6, kernel, causal=causal, dtype="float64", **options)


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
class TestClass:
    def test_central_differences(self, kernel, causal, shapes):
        arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        attention = linear(kernel, causal)
        output, lse = attention.compute(*arrays, return_lse=True)
        grad_output, grad_lse = normal(*output.shape), normal(*np.shape(lse), seed=7)
        mask = np.array([0.3, -0.5, -np.inf, 0.1, 0.0])

        def fn(query, keys, values, finite, *projection):
            for array, given in zip(attention.parameters().values(), projection, strict=True):
                array[...] = given
            mask[[0, 1, 3, 4]] = finite
            (output, lse), gradients = attention.compute_with_gradients(
                query, keys, values, grad_output, grad_lse=grad_lse, mask=mask,
                return_lse=True,
            )  # fmt: skip
            assert gradients.mask[2] == 0
            assert (gradients.keys[..., 2, :] == 0).all()
            return (output * grad_output).sum() + (lse * grad_lse).sum(), (
                gradients.query,
                gradients.keys,
                gradients.values,
                gradients.mask[[0, 1, 3, 4]],
                *gradients.parameters.values(),
            )

        projection = [x.copy() for x in attention.parameters().values()]
        assert len(projection) == (kernel != "elu")
        assert ruvector.gradcheck(fn, [*arrays, mask[[0, 1, 3, 4]], *projection])

    def test_the_result_is_that_of_compute(self, kernel, causal, shapes):
        attention = ruvector.LinearAttention(4, 6, kernel, causal=causal)
        arrays = [normal(*shape, seed=i, dtype="float32") for i, shape in enumerate(shapes)]
        check_results(attention, arrays)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("causal", [False, True])
def test_dtypes(dtype, causal):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    attention = ruvector.LinearAttention(8, 16, causal=causal)
    arrays = [normal(*shape) for shape in ((3, 8), (9, 8), (9, 5))]
    got = check_dtype(attention, dtype, arrays, normal(9), normal(3, 5))
    assert got.parameters["projection"].dtype == np.float32


def test_a_wide_projection_computes_wide():
    narrow = [normal(*shape, dtype="float32") for shape in ((3, 4), (5, 4), (5, 2))]
    wide = [x.astype(np.float64) for x in narrow]
    grad, mask = normal(3, 2), normal(5, dtype="float32")
    _, got = linear().compute_with_gradients(*narrow, grad, mask=mask)
    _, true = linear().compute_with_gradients(*wide, grad, mask=mask)
    for name in ("query", "keys", "values", "mask"):
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], true[name], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.parameters["projection"], true.parameters["projection"])


class TestFunction:
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("causal", [False, True])
    def test_central_differences_of_what_broadcasts(self, kernel, causal):
        arrays = [
            normal(2, 1, 3, 4), normal(3, 5, 4, seed=1), normal(2, 1, 5, 2, seed=2),
            normal(1, 5, seed=3), normal(6, 4, seed=4),
        ]  # fmt: skip
        grad_output, grad_lse = normal(2, 3, 3, 2, seed=5), normal(2, 3, 3, seed=6)
        options = {"num_features": 6, "kernel": kernel, "causal": causal}

        def fn(q, k, v, mask, projection):
            keywords = {"mask": mask, "projection": projection, **options}
            output, lse = ruvector.linear_attention(q, k, v, return_lse=True, **keywords)
            gradients = linear_attention_backward(
                q, k, v, output, grad_output, grad_lse=grad_lse, **keywords
            )
            assert (gradients.projection is None) == (kernel == "elu")
            return (output * grad_output).sum() + (lse * grad_lse).sum(), gradients

        assert ruvector.gradcheck(fn, arrays)

    def test_two_axes(self):
        q, k, v, grad = (normal(7, 4, seed=i) for i in range(4))
        output = ruvector.linear_attention(q, k, v, num_features=6)
        got = linear_attention_backward(q, k, v, output, grad, num_features=6)
        deep = [x[np.newaxis, np.newaxis] for x in (q, k, v, output, grad)]
        true = linear_attention_backward(*deep, num_features=6)
        for x, y in zip(got[:3], true[:3], strict=True):
            np.testing.assert_array_equal(x, y[0, 0])
        assert got.mask is None
        assert got.projection is None

    @pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
    @pytest.mark.parametrize("causal", [False, True])
    def test_empty(self, lengths, causal):
        q, k = normal(2, lengths[0], 4), normal(2, lengths[1], 4)
        options = {"num_features": 6, "causal": causal, "mask": normal(lengths[1])}
        output = ruvector.linear_attention(q, k, k, **options)
        got = linear_attention_backward(q, k, k, output, np.ones_like(output), **options)
        for x, y in zip(got[:3], (q, k, k), strict=True):
            np.testing.assert_array_equal(x, np.zeros(y.shape))
        np.testing.assert_array_equal(got.mask, np.zeros(lengths[1]))

    def test_shapes_are_checked(self):
        x = normal(1, 5, 4)
        with pytest.raises(ruvector.DimensionMismatchError, match="output must have shape"):
            linear_attention_backward(x, x, x, x[:, :3], x, num_features=6)
        with pytest.raises(ruvector.DimensionMismatchError, match="grad_output must have"):
            linear_attention_backward(x, x, x, x, x[..., :3], num_features=6)
        with pytest.raises(ruvector.DimensionMismatchError, match="grad_lse must have"):
            linear_attention_backward(x, x, x, x, x, num_features=6, grad_lse=x)


@pytest.mark.parametrize("causal", [False, True])
class TestAwkward:
    def test_hidden_keys_do_not_leak(self, causal):
        arrays = [normal(2, 6, 4, seed=i) for i in range(4)]
        mask = np.array([True, True, False, True, False, True])
        q, k, v, grad = arrays
        options = {"num_features": 6, "causal": causal, "mask": mask}
        output = ruvector.linear_attention(q, k, v, **options)
        wanted = linear_attention_backward(q, k, v, output, grad, **options)
        k[:, ~mask], v[:, ~mask] = np.nan, np.inf
        got = linear_attention_backward(q, k, v, output, grad, **options)
        for x, y in zip(got[:3], wanted[:3], strict=True):
            np.testing.assert_array_equal(x, y)
        assert (got.k[:, ~mask] == 0).all()

    def test_nothing_to_see(self, causal):
        q, k, v, grad = (normal(1, 6, 4, seed=i) for i in range(4))
        q[0, 0] = np.nan
        mask = np.zeros(6, bool)
        mask[4:] = causal
        options = {"num_features": 6, "causal": causal, "mask": mask}
        output = ruvector.linear_attention(q, k, v, **options)
        got = linear_attention_backward(
            q, k, v, output, grad, grad_lse=np.ones((1, 6)), **options
        )
        assert all(np.isfinite(x).all() for x in got[1:3])
        assert (got.q[:, 1:4] == 0).all()
        assert (got.v[:, :4] == 0).all()

    def test_large_norms_stay_finite(self, causal):
        q, k, v, grad = (normal(1, 40, 4, seed=i, dtype="float32") for i in range(4))
        options = {"num_features": 6, "causal": causal}
        output = ruvector.linear_attention(100 * q, 100 * k, v, **options)
        got = linear_attention_backward(100 * q, 100 * k, v, output, grad, **options)
        wide = [x.astype(np.float64) for x in (100 * q, 100 * k, v, output, grad)]
        true = linear_attention_backward(*wide, **options)
        for x, y in zip(got[:3], true[:3], strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-2, atol=2e-2 * np.abs(y).max())

    def test_what_is_not_finite_stays_with_those_who_see_it(self, causal):
        q, k, v, grad = (normal(1, 9, 4, seed=i) for i in range(4))
        options = {"num_features": 6, "causal": causal}
        for array, name in ((v, "v"), (k, "k"), (q, "q")):
            array[0, 5] = np.nan
            output = ruvector.linear_attention(q, k, v, **options)
            got = linear_attention_backward(q, k, v, output, grad, **options)
            if causal:
                assert np.isfinite(got.q[0, :5]).all()
            if name == "q":
                assert np.isnan(got.q[0, 5]).all()
            array[0, 5] = 1.0
        q[0, 5] = np.nan
        output = ruvector.linear_attention(q, k, v, **options)
        got = linear_attention_backward(q, k, v, output, grad, **options)
        if causal:
            assert np.isfinite(got.k[0, 6:]).all()
        assert np.isfinite(np.delete(got.q, 5, axis=1)).all()

    def test_equal_for_every_number_of_threads(self, causal):
        q, k, v, grad = (normal(2, 3, 600, 16, seed=i, dtype="float32") for i in range(4))
        options = {"num_features": 64, "causal": causal, "mask": normal(600)}
        options["projection"] = normal(64, 16)
        output = ruvector.linear_attention(q, k, v, **options)
        results = []
        for threads in (1, 2, 8):
            with ruvector.num_threads(threads):
                results.append(linear_attention_backward(q, k, v, output, grad, **options))
        for other in results[1:]:
            for x, y in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(x, y)

    def test_memory_does_not_grow_with_the_length(self, causal):
        peaks = []
        for length in (2000, 8000):
            x = normal(1, length, 4, dtype="float32")
            output = ruvector.linear_attention(x, x, x, num_features=128, causal=causal)
            tracemalloc.start()
            linear_attention_backward(x, x, x, output, x, num_features=128, causal=causal)
            peaks.append(tracemalloc.get_traced_memory()[1] / length)
            tracemalloc.stop()
        # The features of all keys would take 512 bytes each.
        assert peaks[1] * 8000 - peaks[0] * 2000 < 6000 * 200

"""The public vector utilities against formulas written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from utils_cases import (
    FLOATS,
    ROW_FUNCTIONS,
    batch_normalize64,
    check,
    cosine64,
    distances64,
    every_row_function,
    norm64,
    softmax64,
    vectors,
)

import ruvector
from ruvector import utils

pytestmark = pytest.mark.usefixtures("backend")


SIZES = [1, 2, 7, 15, 16, 17, 31, 32, 33, 97]


class TestValues:
    @every_row_function
    @pytest.mark.parametrize("dtype", [np.float16, *FLOATS])
    @pytest.mark.parametrize("d", SIZES)
    @pytest.mark.parametrize("rows", [2, 5, 33])
    def test_against_float64(self, function, rows, d, dtype):
        compute, reference = function
        x = vectors(rows, d, dtype)
        check(compute(x), reference(x.astype(np.float64)), dtype)

    @pytest.mark.parametrize("name", ["softmax", "attention_weights", "normalize", "l2_norm"])
    @pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 4, 1, 5)])
    def test_any_shape(self, name, shape):
        compute, reference = ROW_FUNCTIONS[name]
        x = np.random.default_rng(1).normal(size=shape)
        check(compute(x), reference(x), np.float64)

    def test_batch_normalize_of_higher_rank(self):
        x = np.random.default_rng(1).normal(size=(6, 3, 5))
        check(utils.batch_normalize(x), batch_normalize64(x), np.float64)

    def test_one_row_gives_a_scalar(self):
        assert isinstance(utils.l2_norm(np.float32([3, 4])), np.float32)
        assert isinstance(utils.cosine_similarity([1.0, 0.0], [1.0, 1.0]), np.float32)

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize(
        "shapes",
        [
            ((5,), (5,)),
            ((5,), (4, 5)),
            ((4, 5), (5,)),
            ((4, 5), (1, 5)),
            ((3, 1, 5), (4, 5)),
            ((3, 1, 5), (1, 4, 5)),
            ((2, 1, 4, 5), (3, 1, 5)),
            ((0, 5), (5,)),
            ((3, 0, 5), (3, 1, 5)),
        ],
    )
    def test_cosine_broadcasts(self, shapes, dtype):
        rng = np.random.default_rng(2)
        a, b = (rng.normal(size=shape).astype(dtype) for shape in shapes)
        check(utils.cosine_similarity(a, b), cosine64(a.astype(float), b.astype(float)), dtype)

    def test_cosine_stays_within_one(self):
        x = vectors(2000, 3, np.float64)
        assert np.abs(utils.cosine_similarity(x, x)).max() <= 1
        assert np.abs(utils.cosine_similarity(x, -7 * x)).max() <= 1

    def test_mixed_dtypes_promote(self):
        a, b = vectors(3, 5, np.float32), vectors(3, 5, np.float64, seed=1)
        check(utils.cosine_similarity(a, b), cosine64(a.astype(float), b), np.float64)

    @given(hnp.arrays(np.float32, (3, 7), elements=st.floats(-100, 100, width=32)))
    def test_softmax_is_a_distribution(self, x):
        weights = utils.softmax(x)
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
        np.testing.assert_allclose(utils.softmax(x + np.float32(1)), weights, atol=3e-5)


class TestSoftmaxEdges:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_rows_do_not_touch_each_other(self, dtype):
        inf, nan = np.inf, np.nan
        x = np.array(
            [[1, 2, -inf], [-inf] * 3, [nan, 1, 2], [inf, 1, 2], [-3e38, 3e38, 0]], dtype
        )
        e = math.exp(-1)
        expected = [[e / (1 + e), 1 / (1 + e), 0], [0] * 3, [nan] * 3, [nan] * 3, [0, 1, 0]]
        np.testing.assert_allclose(utils.softmax(x), expected, rtol=1e-6)

    def test_warns_of_nothing(self, recwarn):
        utils.softmax(np.float32([-np.inf, -np.inf]))
        utils.softmax(np.float32([np.inf, np.nan]))
        utils.softmax(np.float32([-3e38, 3e38]))
        assert not recwarn.list

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_tiny_temperature_is_argmax(self, dtype):
        x = np.array([1.0, 3.0, 2.0], dtype)
        np.testing.assert_array_equal(utils.attention_weights(x, 1e-60), [0, 1, 0])
        np.testing.assert_allclose(utils.attention_weights(x, 1e60), [1 / 3] * 3, rtol=1e-6)

    @pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan, "1", None, True])
    def test_temperature_must_be_positive(self, temperature):
        with pytest.raises(ruvector.InvalidConfigError, match="temperature must be"):
            utils.attention_weights([1.0, 2.0], temperature)


class TestNorms:
    def test_float32_extremes(self):
        x = np.float32([[3e38, 0], [3e-45, 4e-45], [2e38, 2e38]])
        expected = norm64(x.astype(np.float64))
        np.testing.assert_allclose(utils.l2_norm(x), expected, rtol=0.3)
        unit = utils.normalize(np.float32([[3e38, 3e38], [1e-44, 1e-44]]))
        np.testing.assert_allclose(unit, math.sqrt(0.5), rtol=1e-6)

    def test_float64_extremes(self):
        x = np.array([[3e300, 4e300], [3e-300, 4e-300], [3e-170, 4e-170], [3, 4]])
        np.testing.assert_allclose(utils.normalize(x), [[0.6, 0.8]] * 4, rtol=1e-14)
        np.testing.assert_allclose(utils.l2_norm(x), [5e300, 5e-300, 5e-170, 5], rtol=1e-14)
        np.testing.assert_allclose(utils.cosine_similarity(x, x[::-1]), 1, rtol=1e-14)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_not_finite(self, dtype):
        x = np.array([[np.inf, 1], [np.nan, 1], [3, 4]], dtype)
        np.testing.assert_allclose(utils.l2_norm(x), [np.inf, np.nan, 5])
        np.testing.assert_allclose(
            utils.normalize(x), [[np.nan, 0], [np.nan, np.nan], [0.6, 0.8]], rtol=1e-6
        )
        np.testing.assert_allclose(
            utils.cosine_similarity(x, x[2]), [np.nan, np.nan, 1], rtol=1e-6
        )

    def test_zero_vector_is_an_error(self):
        with pytest.raises(
            ruvector.EmptyInputError, match=r"^x must not hold a zero vector, got one$"
        ):
            utils.normalize([0.0, 0.0])
        x = np.ones((2, 3, 4))
        x[1, 2] = 0
        with pytest.raises(ruvector.EmptyInputError, match=r"^x .*got one at index \(1, 2\)"):
            utils.normalize(x)
        with pytest.raises(ruvector.EmptyInputError, match=r"^a .*at index \(1, 2\)"):
            utils.cosine_similarity(x, np.ones(4))
        with pytest.raises(ruvector.EmptyInputError, match=r"^b .*at index \(1, 2\)"):
            utils.cosine_similarity(np.ones(4), x)
        with pytest.raises(ruvector.EmptyInputError, match=r"^b .*got one$"):
            utils.cosine_similarity(np.ones((3, 1, 4)), np.zeros(4))
        with pytest.raises(ruvector.EmptyInputError, match=r"^x "):
            utils.normalize(np.ones((2, 0)))
        assert utils.l2_norm([0.0, 0.0]) == 0

    def test_zero_vector_leaves_out_alone(self):
        x = np.float32([[1, 2], [0, 0]])
        with pytest.raises(ruvector.EmptyInputError):
            utils.normalize(x, out=x)
        np.testing.assert_array_equal(x, [[1, 2], [0, 0]])
        out = np.full((2, 2), 7.0, np.float32)
        with pytest.raises(ruvector.EmptyInputError):
            utils.cosine_similarity(np.ones((2, 1, 2), np.float32), x, out=out)
        np.testing.assert_array_equal(out, 7)


class TestBatchNormalize:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_large_offset(self, dtype):
        x = vectors(50, 5, dtype) + np.array(1000, dtype)
        np.testing.assert_allclose(
            utils.batch_normalize(x),
            batch_normalize64(x.astype(np.float64)),
            atol=2e-6 if dtype == np.float32 else 1e-11,
        )

    def test_constant_column_is_zero(self):
        np.testing.assert_array_equal(utils.batch_normalize(np.full((7, 2), 0.1e9)), 0)

    @pytest.mark.parametrize("epsilon", [0, -1e-8, math.inf, math.nan, "x"])
    def test_epsilon_must_be_positive(self, epsilon):
        with pytest.raises(ruvector.InvalidConfigError, match="epsilon must be"):
            utils.batch_normalize(np.ones((2, 2)), epsilon)


class TestPairwiseDistances:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("rows", [1, 3, 300])
    def test_close_points_far_from_the_origin(self, rows, dtype):
        x = (100 + vectors(1, 40, dtype) + 1e-3 * vectors(rows, 40, dtype)).astype(dtype)
        distances = utils.pairwise_distances(x)
        expected = distances64(x.astype(np.float64))
        np.testing.assert_allclose(
            distances, expected, rtol=2e-7 if dtype == np.float32 else 1e-13
        )

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_two_distant_clusters(self, dtype):
        x = vectors(300, 8, dtype) * np.array(1e-4, dtype)
        x[::2] += np.array(1000, dtype)
        np.testing.assert_allclose(
            utils.pairwise_distances(x),
            distances64(x.astype(np.float64)),
            rtol=2e-7 if dtype == np.float32 else 1e-13,
        )

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("far", [1e5, 1e15, 1e30])
    def test_an_outlier_spoils_nothing(self, far, dtype):
        x = vectors(300, 8, dtype)
        x[7] = far
        np.testing.assert_allclose(
            utils.pairwise_distances(x),
            distances64(x.astype(np.float64)),
            rtol=2e-7 if dtype == np.float32 else 1e-13,
        )

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_symmetric_with_a_zero_diagonal(self, dtype):
        x = vectors(301, 17, dtype)
        x[5] = x[7]
        distances = utils.pairwise_distances(x)
        np.testing.assert_array_equal(distances, distances.T)
        np.testing.assert_array_equal(np.diag(distances), 0)
        assert distances[5, 7] == 0
        assert (distances[~np.eye(301, dtype=bool)] > 0).sum() == 301 * 300 - 2

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_not_finite_stays_in_its_rows(self, dtype):
        x = vectors(9, 5, dtype)
        clean = utils.pairwise_distances(x)
        x[3, 1], x[6, 2] = np.nan, np.inf
        distances = utils.pairwise_distances(x)
        assert np.isnan(distances[3]).all()
        assert np.isnan(distances[6, [3, 6]]).all()
        assert np.isinf(np.delete(distances[6], [3, 6])).all()
        rest = [0, 1, 2, 4, 5, 7, 8]
        np.testing.assert_allclose(
            distances[np.ix_(rest, rest)], clean[np.ix_(rest, rest)], rtol=1e-6
        )

    def test_float64_extremes(self):
        x = np.array([[0, 0], [3e200, 4e200], [3e-200, 4e-200]])
        expected = [[0, 5e200, 5e-200], [5e200, 0, 5e200], [5e-200, 5e200, 0]]
        np.testing.assert_allclose(utils.pairwise_distances(x), expected, rtol=1e-14)

    @pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
    def test_empty(self, shape):
        np.testing.assert_array_equal(
            utils.pairwise_distances(np.ones(shape)), np.zeros((shape[0], shape[0]))
        )


class TestRandomOrthogonalMatrix:
    @pytest.mark.parametrize("dim", [1, 2, 33, 97])
    def test_is_orthogonal(self, dim):
        q = utils.random_orthogonal_matrix(dim, seed=3)
        assert q.dtype == np.float32
        assert q.shape == (dim, dim)
        np.testing.assert_allclose(q @ q.T, np.eye(dim), atol=2e-6)

    def test_seed(self):
        first = utils.random_orthogonal_matrix(5, seed=3)
        np.testing.assert_array_equal(first, utils.random_orthogonal_matrix(5, seed=3))
        rng = np.random.default_rng(3)
        np.testing.assert_array_equal(first, utils.random_orthogonal_matrix(5, seed=rng))
        assert (first != utils.random_orthogonal_matrix(5, seed=rng)).any()
        assert (utils.random_orthogonal_matrix(5) != utils.random_orthogonal_matrix(5)).any()

    def test_is_uniform(self):
        # The first entry of a Haar matrix has mean 0 and variance 1 / dim; plain QR leaves
        # the sign of the diagonal of R fixed and fails this.
        rng = np.random.default_rng(0)
        entries = [utils.random_orthogonal_matrix(4, seed=rng)[0, 0] for _ in range(2000)]
        assert abs(np.mean(entries)) < 0.05
        assert np.var(entries) == pytest.approx(0.25, abs=0.03)

    @pytest.mark.parametrize("dim", [0, -1, 2.0, "2", True])
    def test_dim_must_be_positive(self, dim):
        with pytest.raises(ruvector.InvalidConfigError, match="dim must be"):
            utils.random_orthogonal_matrix(dim)


class TestScaledDotAttention:
    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("scale", [None, 0.5])
    @pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
    def test_against_float64(self, lead, scale, dtype):
        rng = np.random.default_rng(4)
        batch = lead[:-1]
        query = rng.normal(size=(*lead, 9)).astype(dtype)
        keys = rng.normal(size=(*batch, 7, 9)).astype(dtype)
        values = rng.normal(size=(*batch, 7, 5)).astype(dtype)
        q, k, v = (x.astype(np.float64) for x in (query, keys, values))
        scores = (np.atleast_2d(q) @ np.swapaxes(k, -1, -2)) * (scale or 1 / 3)
        expected = (softmax64(scores) @ v).reshape(*lead, 5)
        check(utils.scaled_dot_attention(query, keys, values, scale), expected, dtype)

    def test_takes_lists(self):
        out = utils.scaled_dot_attention([1, 0], [[1, 0], [1, 0]], [[1, 2], [3, 4]])
        np.testing.assert_allclose(out, [2, 3])

    @pytest.mark.parametrize("lead", [(), (4,)])
    def test_out(self, lead):
        query, memory = np.ones((*lead, 3), np.float32), np.eye(3, dtype=np.float32)
        out = np.empty((*lead, 3), np.float32)
        assert utils.scaled_dot_attention(query, memory, memory, out=out) is out
        np.testing.assert_allclose(out, 1 / 3, rtol=1e-6)

    def test_wrong_shapes(self):
        one, memory = np.ones(3), np.ones((5, 3))
        for arguments, message in [
            ((1.0, memory, memory), r"^query .*\(\.\.\., dim\), got \(\)"),
            ((one, one, memory), r"^keys .*\(n, dim\).*got \(3,\)"),
            ((one, memory, one), r"^values .*\(n, dim_v\).*got \(3,\)"),
            ((np.ones(4), memory, memory), "^keys .*length 4 as in query, got 3"),
            ((one, memory, memory[:4]), "^values must hold 5 vectors, one per key, got 4"),
        ]:
            with pytest.raises(ruvector.DimensionMismatchError, match=message):
                utils.scaled_dot_attention(*arguments)
        with pytest.raises(ruvector.InvalidConfigError, match="scale must be"):
            utils.scaled_dot_attention(one, memory, memory, np.inf)
        with pytest.raises(TypeError, match="keys"):
            utils.scaled_dot_attention(one, memory * 1j, memory)

    def test_no_keys(self):
        out = utils.scaled_dot_attention(np.ones(3), np.ones((0, 3)), np.ones((0, 2)))
        np.testing.assert_array_equal(out, [0, 0])


def test_available_mechanisms():
    names = ruvector.utils.available_mechanisms()
    assert {"dot-product", "multi-head", "flash", "local-global"} <= set(names)
    assert len(set(names)) == len(names)
    names.clear()
    assert utils.available_mechanisms()

"""Attention weights and the keys that get the most of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from softmax_cases import STORAGE, compute_dtype, problem, quiet

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")

SPECS = [
    {},
    {"causal": True, "bottom_right": True},
    {"left": 3, "right": 2, "num_sinks": 2},
    {"softcap": 2.0, "sink_logits": np.array([1.0, -2.0], np.float32)},
    {"slopes": np.array([0.5, 2.0], np.float32)},
]
RTOL = {"float32": 3e-5, "float64": 1e-11, "float16": 3e-5, "bfloat16": 3e-4}


def _weights(case):
    shape = (*case.query.shape[:3], case.key.shape[2])
    out = np.full(shape, np.nan, compute_dtype(case.dtype))
    with quiet():
        _kernels.softmax.weights(case.query, case.key, out, case.spec, 1)
    return out


def _top_k(case, k):
    shape = (*case.query.shape[:3], k)
    indices = np.full(shape, 99, np.int64)
    weights = np.full(shape, np.nan, compute_dtype(case.dtype))
    with quiet():
        _kernels.softmax.top_k(case.query, case.key, k, indices, weights, case.spec, 1)
    return indices, weights


@pytest.mark.parametrize("num_queries", [1, 33])
def test_weights_of_huge_scores_sum_to_one(num_queries):
    for seed in range(9):
        case = problem(seed, num_queries=num_queries, num_keys=97, dim=64, scale=1e7)
        # Pairs of keys whose scores are the same or nearly so.
        case.key[:, :, 50:] = case.key[:, :, :47]
        np.testing.assert_allclose(_weights(case).sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(_top_k(case, 97)[1].sum(axis=-1), 1, rtol=1e-5)


def _check_top_k(case, k):
    indices, weights = _top_k(case, k)
    _, _, expected = case.reference()
    rtol = RTOL[case.dtype]
    num_keys = expected.shape[-1]
    for where in np.ndindex(expected.shape[:3]):
        row, own, weight = expected[where], indices[where], weights[where]
        visible = np.count_nonzero(row)
        found = min(k, visible)
        assert (own[found:] == -1).all()
        assert (weight[found:] == 0).all()
        own, weight = own[:found], weight[:found]
        assert len(set(own.tolist())) == found
        assert ((own >= 0) & (own < num_keys)).all()
        assert (np.diff(weight) <= 0).all()
        np.testing.assert_allclose(weight, row[own], rtol=rtol, atol=1e-30)
        np.testing.assert_allclose(weight, -np.sort(-row)[:found], rtol=rtol, atol=1e-30)


class TestWeights:
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(spec) or "plain")
    @pytest.mark.parametrize("shape", [(1, 33), (17, 97), (33, 16), (70, 300), (1, 5000)])
    def test_against_the_reference(self, shape, spec, dtype):
        spec = {
            name: option.astype(compute_dtype(dtype)) if name in _ARRAYS else option
            for name, option in spec.items()
        }
        case = problem(num_queries=shape[0], num_keys=shape[1], dtype=dtype, **spec)
        _, _, expected = case.reference()
        weights = _weights(case)
        np.testing.assert_allclose(weights, expected, rtol=RTOL[dtype], atol=1e-30)
        np.testing.assert_array_equal(weights[expected == 0], 0)

    def test_grouped_heads_and_batch(self):
        case = problem(batch=2, heads=6, key_heads=2, num_queries=17, num_keys=33)
        np.testing.assert_allclose(_weights(case), case.reference()[2], rtol=3e-5)

    def test_rows_sum_to_one_but_for_the_sink_logit(self):
        sinks = np.array([3.0, -np.inf], np.float32)
        weights = _weights(problem(num_queries=17, num_keys=97, sink_logits=sinks))
        assert (weights[0, 0].sum(axis=-1) < 0.95).all()
        np.testing.assert_allclose(weights[0, 1].sum(axis=-1), 1, rtol=1e-5)

    def test_a_row_that_sees_nothing_and_poison_behind_the_mask(self):
        mask = np.ones((1, 2, 17, 33), bool)
        mask[:, :, 4] = False
        mask[..., 7] = False
        case = problem(num_queries=17, num_keys=33, mask=mask)
        case.key[:, :, 7] = np.nan
        weights = _weights(case)
        np.testing.assert_allclose(weights, case.reference()[2], rtol=3e-5)
        assert (weights[:, :, 4] == 0).all()

    def test_a_nan_poisons_its_row_alone(self):
        case = problem(num_queries=17, num_keys=33)
        case.query[0, 0, 3] = np.nan
        weights = _weights(case)
        assert np.isnan(weights[0, 0, 3]).all()
        assert np.isnan(weights).sum() == 33

    def test_hidden_keys_get_nothing_even_in_a_poisoned_row(self):
        mask = np.ones((1, 2, 17, 33), bool)
        mask[..., 7] = False
        case = problem(num_queries=17, num_keys=33, mask=mask)
        case.query[0, 0, 3] = np.nan
        weights = _weights(case)
        assert (weights[..., 7] == 0).all()
        assert np.isnan(weights[0, 0, 3]).sum() == 32

    def test_strided_result(self):
        case = problem(num_queries=17, num_keys=33)
        memory = np.full((1, 2, 34, 35), 5, np.float32)
        out = memory[:, :, ::-2, 1:-1]
        _kernels.softmax.weights(case.query, case.key, out, case.spec, 1)
        np.testing.assert_allclose(out, case.reference()[2], rtol=3e-5)
        assert (memory[:, :, ::2] == 5).all()
        assert (memory[..., [0, -1]] == 5).all()

    def test_no_keys(self):
        assert _weights(problem(num_keys=0)).shape == (1, 2, 5, 0)


_ARRAYS = ("slopes", "sink_logits")


class TestTopK:
    @pytest.mark.parametrize("k", [1, 3, 16, 17, 40])
    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: "-".join(spec) or "plain")
    def test_against_the_reference(self, spec, k):
        for num_queries, num_keys in ((1, 33), (17, 97), (33, 16)):
            _check_top_k(problem(num_queries=num_queries, num_keys=num_keys, **spec), k)

    @pytest.mark.parametrize("dtype", STORAGE)
    def test_storage_types(self, dtype):
        _check_top_k(problem(heads=4, key_heads=2, num_queries=7, num_keys=97, dtype=dtype), 9)

    @pytest.mark.parametrize("shape", [(1, 70_000), (3, 5000), (300, 2000), (1, 300_000)])
    def test_many_keys(self, shape):
        case = problem(heads=1, num_queries=shape[0], num_keys=shape[1], dim=3, scale=1.0)
        _check_top_k(case, 10)

    @pytest.mark.parametrize("shape", [(5, 97), (1, 5000), (300, 2000)])
    @pytest.mark.parametrize("k", [1, 10, 90])
    def test_ties_go_to_the_lower_index(self, shape, k):
        # Small whole numbers: every score is exact, and there are many equal ones.
        rng = np.random.default_rng(0)
        case = problem(heads=1, num_queries=shape[0], num_keys=shape[1], dim=4, scale=1.0)
        case.query[...] = rng.integers(-1, 2, case.query.shape)
        case.key[...] = rng.integers(-1, 2, case.key.shape)
        scores = case.query[0, 0] @ case.key[0, 0].T
        expected = np.argsort(-scores, axis=-1, kind="stable")[:, :k]
        indices, _ = _top_k(case, k)
        np.testing.assert_array_equal(indices[0, 0], expected)

    def test_all_keys_alike(self):
        case = problem(heads=1, num_queries=33, num_keys=1000, scale=1.0)
        case.key[...] = 1
        case.query[...] = 1
        indices, weights = _top_k(case, 5)
        np.testing.assert_array_equal(indices[0, 0], np.tile(np.arange(5), (33, 1)))
        np.testing.assert_allclose(weights, 1e-3, rtol=1e-5)

    @given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0, 1))
    def test_masks(self, seed, k, density):
        rng = np.random.default_rng(seed)
        mask = rng.random((1, 2, 9, 50)) < density
        bias = rng.standard_normal((1, 2, 9, 50)).astype(np.float32)
        bias[rng.random(bias.shape) < 0.1] = -np.inf
        case = problem(seed, num_queries=9, num_keys=50, mask=mask, bias=bias)
        _check_top_k(case, k)

    def test_poison_behind_the_mask_is_never_found(self):
        mask = np.ones((1, 2, 17, 33), bool)
        mask[..., 7:20] = False
        case = problem(num_queries=17, num_keys=33, mask=mask)
        case.key[:, :, 7:20] = np.nan
        _check_top_k(case, 25)

    def test_a_nan_poisons_the_weights_of_its_row_alone(self):
        case = problem(num_queries=17, num_keys=33)
        case.query[0, 0, 3] = np.nan
        _, weights = _top_k(case, 4)
        assert np.isnan(weights[0, 0, 3]).all()
        assert np.isnan(weights).sum() == 4

    def test_no_keys(self):
        indices, weights = _top_k(problem(num_keys=0), 3)
        assert (indices == -1).all()
        assert (weights == 0).all()

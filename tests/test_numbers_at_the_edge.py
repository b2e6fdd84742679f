"""What both backends make of infinities, NaN and the ends of a type's range, alike."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ruvector
from ruvector import LinearAttention, scaled_dot_product_attention

pytestmark = pytest.mark.usefixtures("backend")


def normal(*shape, dtype="float32"):
    return np.random.default_rng([*shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("num_queries", [1, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mask_of_the_lowest_number_hides_nothing_by_itself(dtype, num_queries):
    query, key, value = (normal(1, 2, n, 16, dtype=dtype) for n in (num_queries, 70, 70))
    mask = np.full((num_queries, 70), np.finfo(dtype).min, dtype)
    output, lse = scaled_dot_product_attention(query, key, value, mask, return_lse=True)
    average = np.broadcast_to(value.mean(axis=2, keepdims=True), output.shape)
    np.testing.assert_allclose(output, average, atol=1e-6)
    assert np.isfinite(lse).all()
    weights = ruvector.attention_weights_from(query, key, mask)
    np.testing.assert_allclose(weights, 1 / 70, rtol=1e-6)
    np.testing.assert_array_equal(ruvector.top_k_keys(query, key, 1, mask)[0], 0)
    # Beside keys that are not masked the others count as little as with -inf.
    mask[:, 60:] = 0
    visible = scaled_dot_product_attention(query, key[:, :, 60:], value[:, :, 60:])
    np.testing.assert_allclose(
        scaled_dot_product_attention(query, key, value, mask), visible, atol=1e-5
    )


@pytest.mark.parametrize("num_queries", [1, 40])
@pytest.mark.parametrize("logit", [np.nan, np.inf])
def test_a_sink_logit_that_is_not_finite_is_seen(logit, num_queries):
    query, key, value = (normal(1, 2, n, 16) for n in (num_queries, 70, 70))
    output, lse = scaled_dot_product_attention(
        query, key, value, sink_logits=np.array([logit, 0.5]), return_lse=True
    )
    assert np.isnan(output[:, 0]).all()
    assert np.isnan(lse[:, 0]).all()
    assert np.isfinite(output[:, 1]).all()


@pytest.mark.parametrize("attention", [ruvector.DotProductAttention(8)])
def test_a_score_of_minus_infinity_weighs_nothing_beside_an_infinite_one(attention):
    keys = normal(9, 8)
    keys[:, 0] = np.where(np.arange(9) % 3, 1, -1)
    query = np.zeros(8, np.float32)
    query[0] = np.inf
    _, weights = attention.compute(query, keys, keys, return_weights=True)
    np.testing.assert_array_equal(np.isnan(weights), keys[:, 0] > 0)
    np.testing.assert_array_equal(weights[keys[:, 0] < 0], 0)


@pytest.mark.parametrize("kernel", ["elu", "relu", "softmax"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinite_value_makes_linear_attention_infinite(kernel, sign):
    queries, keys, values = normal(5, 8), normal(9, 8), normal(9, 6)
    values[4, 2] = sign * np.inf
    output = LinearAttention(8, 16, kernel).compute(queries, keys, values)
    np.testing.assert_array_equal(output[:, 2], sign * np.inf)
    assert np.isfinite(np.delete(output, 2, axis=1)).all()


def test_results_beyond_their_type_do_not_warn():
    queries, keys, values = normal(3, 8), normal(9, 8), normal(9, 8, dtype="float64")
    large, small = values * 1e300, values * 1e-300
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        output, tiny = (
            ruvector.DotProductAttention(8).compute(queries, keys, x) for x in (large, small)
        )
    assert output.dtype == tiny.dtype == np.float32
    assert np.isinf(output).all()
    assert not tiny.any()


def test_infinite_values_of_experts_do_not_warn():
    queries, keys, values = normal(5, 8), normal(9, 8), normal(9, 8)
    values[4, 2] = np.inf
    attention = ruvector.MoEAttention(dim=8, num_experts=3, top_k=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, gradients = attention.compute_with_gradients(queries, keys, values, normal(5, 8))
    assert np.isnan(gradients.query).any()


def test_memoryviews_are_memories():
    queries, keys = normal(4, 8), normal(4, 9, 8)
    expected = ruvector.parallel_attention_compute("dot-product", queries, keys, keys, dim=8)
    views = [memoryview(x) for x in (queries, keys, keys)]
    got = ruvector.parallel_attention_compute("dot-product", *views, dim=8)
    np.testing.assert_array_equal(got, expected)


def test_counts_beyond_every_array_are_as_good_as_any():
    query = normal(1, 1, 5, 8)
    for number in (2**31, 2**63, 2**70):
        output = scaled_dot_product_attention(query, query, query, num_sink_tokens=number)
        np.testing.assert_array_equal(
            output, scaled_dot_product_attention(query, query, query, num_sink_tokens=5)
        )
        attention = ruvector.LocalGlobalAttention(8, number, number)
        assert attention.global_tokens == number
        x = query[0, 0]
        np.testing.assert_allclose(attention.compute(x, x, x), output[0, 0], atol=1e-6)
        with ruvector.num_threads(number):
            ruvector.DotProductAttention(8).compute(x, x, x)
        ruvector.sharded_attention(x, [(x, x)], num_threads=number)
        parts = x[:, np.newaxis]
        ruvector.parallel_attention_compute("dot-product", x, parts, parts, number, dim=8)


@pytest.mark.parametrize("executor", ["threads", 2])
def test_what_is_no_executor_is_named(executor):
    x = normal(5, 8)
    parts = x[:, np.newaxis]
    message = "^executor must be a concurrent.futures.Executor, got (str|int)$"
    for call in (
        lambda: ruvector.sharded_attention(x, [(x, x)], executor=executor),
        lambda: ruvector.parallel_attention_compute(
            "dot-product", x, parts, parts, dim=8, executor=executor
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_other_options_of_wrong_types():
    with pytest.raises(ruvector.InvalidConfigError, match="strategy must be"):
        ruvector.HardNegativeMiner(np.array(["hard", "random"]))
    with pytest.raises(ruvector.InvalidConfigError, match="margin must be a finite number"):
        ruvector.LocalContrastiveLoss(10**400)
    for name in ("atol", "rtol"):
        with pytest.raises(ruvector.InvalidConfigError, match=f"{name} must be a finite"):
            ruvector.gradcheck(lambda x: (x.sum(), [x]), [[1.0]], **{name: None})

"""The running state of LinearAttention."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import reference_linear
from hypothesis import given
from hypothesis import strategies as st
from linear_classes import DIM, FEATURES, KERNELS, near, normal

import ruvector
from ruvector import LinearAttention

pytestmark = pytest.mark.usefixtures("backend")

kernels = pytest.mark.parametrize("kernel", KERNELS)


@kernels
class TestState:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_prefill_append_and_merge_agree_with_compute(self, kernel, dtype):
        arrays = (normal(r, w, dtype=dtype) for r, w in ((9, DIM), (200, DIM), (200, 7)))
        query, keys, values = arrays
        make = LinearAttention(DIM, FEATURES, kernel)
        expected, expected_lse = make.compute(query, keys, values, return_lse=True)
        one, two = copy.deepcopy(make), copy.deepcopy(make)
        make.prefill(keys, values)
        one.prefill(keys[:150], values[:150])
        for key, value in zip(keys[150:], values[150:], strict=True):
            one.append(key, value)
        two.append(keys[120:], values[120:])
        other = copy.deepcopy(two)
        other.prefill(keys[:120], values[:120])
        two.merge(other)
        fresh = LinearAttention(DIM, FEATURES, kernel)
        fresh.merge(two.state)
        for attention in (make, one, two, fresh):
            out, lse = attention.attend(query, return_lse=True)
            assert (out.dtype, lse.dtype) == (dtype, dtype)
            near(out, expected, dtype)
            near(lse, expected_lse, dtype)
            near(attention.attend(query[3]), expected[3], dtype)
            near(attention.attend(query.reshape(3, 3, DIM)), expected.reshape(3, 3, 7), dtype)
            assert attention.state.num_keys == 200
            for a, b in zip(attention.state, make.state, strict=True):
                scale = np.abs(b).max()
                np.testing.assert_allclose(
                    a, b, atol=scale * (1e-12 if dtype == np.float64 else 1e-5)
                )

    def test_is_what_it_says(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        keys, values = normal(60, DIM, dtype=np.float64), normal(60, 5, dtype=np.float64)
        attention.prefill(keys, values)
        expected = reference_linear.state(
            keys,
            values,
            attention.parameters().get("projection", np.eye(DIM)),
            kernel=kernel,
            scale=DIM**-0.25 if kernel == "softmax" else 1.0,
            epsilon={"softmax": 1e-6, "relu": 1e-3, "elu": 0.0}[kernel],
        )
        for got, wanted in zip(attention.state, expected, strict=True):
            near(got, wanted, np.float64)

    def test_masked_prefill(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        keys, values, query = normal(60, DIM), normal(60, 5), normal(DIM)
        mask = normal(60) > 0
        attention.prefill(keys, values, mask=mask)
        near(attention.attend(query), attention.compute(query, keys, values, mask=mask))
        attention.prefill(keys, values, mask=np.zeros(60, bool))
        out, lse = attention.attend(query, return_lse=True)
        assert (out == 0).all()
        assert lse == -np.inf

    def test_empty_parts(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        keys, values, query = normal(60, DIM), normal(60, 5), normal(DIM)
        attention.prefill(np.zeros((0, DIM)), np.zeros((0, 5)))
        assert (attention.attend(query) == 0).all()
        empty = copy.deepcopy(attention)
        attention.append(keys, values)
        attention.append(np.zeros((0, DIM)), np.zeros((0, 5)))
        attention.merge(empty)
        attention.merge(LinearAttention(DIM, FEATURES, kernel))
        empty.merge(attention)
        for one in (attention, empty):
            near(one.attend(query), attention.compute(query, keys, values))

    def test_copies_keep_it_and_do_not_share_it(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        attention.prefill(normal(9, DIM), normal(9, 5))
        before = attention.attend(normal(3, DIM))
        for copied in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
            np.testing.assert_array_equal(copied.attend(normal(3, DIM)), before)
            copied.append(normal(DIM, seed=1), normal(5, seed=1))
            assert copied.state.num_keys == 10
        attention.state.numerator[...] = 0
        np.testing.assert_array_equal(attention.attend(normal(3, DIM)), before)
        attention.reset()
        assert attention.state is None

    def test_mixed_precision(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        keys, values, query = normal(60, DIM), normal(60, 5), normal(3, DIM)
        attention.prefill(keys[:30], values[:30])
        attention.append(keys[30:].astype(np.float64), values[30:].astype(np.float16))
        expected = attention.compute(query, keys, values.astype(np.float16).astype(np.float32))
        for dtype in (np.float32, np.float64):
            out = attention.attend(query.astype(dtype))
            assert out.dtype == dtype
            np.testing.assert_allclose(out, expected, rtol=2e-3, atol=2e-3)

    def test_what_raised_left_it_as_it_was(self, kernel):
        attention = LinearAttention(DIM, FEATURES, kernel)
        attention.prefill(normal(9, DIM), normal(9, 5))
        before = attention.state
        for keys, values in (
            (normal(9, DIM + 1), normal(9, 5)),
            (normal(9, DIM), normal(9, 6)),
            (normal(9, DIM), normal(8, 5)),
            (normal(9, DIM).astype(complex), normal(9, 5)),
        ):
            with pytest.raises((ruvector.DimensionMismatchError, TypeError)):
                attention.append(keys, values)
        with pytest.raises(ruvector.InvalidMaskError):
            attention.prefill(normal(9, DIM), normal(9, 5), mask=np.ones((1, 9), bool))
        for a, b in zip(attention.state, before, strict=True):
            np.testing.assert_array_equal(a, b)


class TestErrors:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ((DIM + 1,), (5,), "key must have shape (n, 16), got (1, 17)"),
            ((DIM,), (6,), "value must have shape (n, 5), got (1, 6)"),
            ((2, DIM), (3, 5), "value must hold 2 vectors, one per key, got 3"),
            ((DIM,), (1, 5), "key must have shape (n, 16), got (16,)"),
        ],
    )
    def test_wrong_appends(self, key, value, message):
        attention = LinearAttention(DIM, FEATURES)
        attention.prefill(normal(9, DIM), normal(9, 5))
        with pytest.raises(ruvector.DimensionMismatchError) as caught:
            attention.append(np.zeros(key), np.zeros(value))
        assert str(caught.value) == message

    def test_wrong_merges(self):
        attention = LinearAttention(DIM, FEATURES)
        attention.prefill(normal(9, DIM), normal(9, 5))
        for other in (LinearAttention(DIM, FEATURES, seed=1), LinearAttention(DIM, 8)):
            with pytest.raises(ruvector.InvalidConfigError, match="other must have the config"):
                attention.merge(other)
        wider = LinearAttention(DIM, FEATURES)
        wider.prefill(normal(9, DIM), normal(9, 6))
        with pytest.raises(
            ruvector.DimensionMismatchError, match="other must have a numerator"
        ):
            attention.merge(wider)
        with pytest.raises(TypeError, match="other must be a LinearAttention or a LinearState"):
            attention.merge(3)


@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 60), max_size=4).map(sorted),
    kernel=st.sampled_from(KERNELS),
)
def test_any_split_of_a_memory_merges_to_the_whole(seed, cuts, kernel):
    keys, values = normal(60, 8, seed=seed, dtype=np.float64), normal(60, 3, dtype=np.float64)
    whole = LinearAttention(8, 24, kernel)
    whole.prefill(keys, values)
    merged = LinearAttention(8, 24, kernel)
    for start, stop in zip([0, *cuts], [*cuts, 60], strict=True):
        part = LinearAttention(8, 24, kernel)
        part.prefill(keys[start:stop], values[start:stop])
        merged.merge(part.state)
    for a, b in zip(merged.state, whole.state, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)

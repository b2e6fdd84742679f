"""merge_states: any split of the keys gives the state of the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import merge_states

pytestmark = pytest.mark.usefixtures("backend")


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@st.composite
def splits(draw):
    num_keys = draw(st.integers(1, 40))
    cuts = sorted(draw(st.lists(st.integers(0, num_keys), max_size=6)))
    return num_keys, [0, *cuts, num_keys]


@given(splits(), st.sampled_from(["float32", "float64"]))
def test_any_split_of_the_keys(split, dtype):
    num_keys, cuts = split
    query = normal(2, 3, 4, 8, seed=1, dtype=dtype)
    key, value = (normal(2, 3, num_keys, w, seed=w, dtype=dtype) for w in (8, 5))
    attend = ruvector.scaled_dot_product_attention
    parts = [
        attend(query, key[:, :, a:b], value[:, :, a:b], return_lse=True)
        for a, b in itertools.pairwise(cuts)
    ]
    out, lse = merge_states(*zip(*parts, strict=True))
    wanted, wanted_lse = attend(query, key, value, return_lse=True)
    tolerance = {"rtol": 2e-5, "atol": 4e-6} if dtype == "float32" else {"rtol": 1e-12}
    assert (out.dtype, lse.dtype) == (dtype, dtype)
    np.testing.assert_allclose(out, wanted, **tolerance)
    np.testing.assert_allclose(lse, wanted_lse, **tolerance)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_states_of_the_classes(heads, shape):
    attention = ruvector.MultiHeadAttention(8, heads)
    keys = normal(*shape[:-2], 9, 8)
    query = normal(*shape, seed=1)
    parts = [
        attention.compute(query, part, part, return_lse=True)
        for part in (keys[..., :2, :], keys[..., 2:, :])
    ]
    out, lse = merge_states(*zip(*parts, strict=True))
    wanted, wanted_lse = attention.compute(query, keys, keys, return_lse=True)
    assert (out.shape, np.shape(lse)) == (wanted.shape, np.shape(wanted_lse))
    np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=4e-6)
    np.testing.assert_allclose(lse, wanted_lse, rtol=2e-5)


def test_against_the_reference():
    outputs, lses = normal(4, 7, 5), 3 * normal(4, 7, seed=1)
    lses[1] = -np.inf
    lses[:, 2] = -np.inf
    out, lse = merge_states(outputs, lses)
    wanted, wanted_lse = reference.merge(outputs, lses)
    np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=4e-6)
    np.testing.assert_allclose(lse, wanted_lse, rtol=2e-5)


def test_identity():
    outputs, lses = normal(1, 3, 4), normal(1, 3)
    nothing, no_lse = np.full((1, 3, 4), np.nan, np.float32), np.full((1, 3), -np.inf, "f4")
    for order in (slice(None), slice(None, None, -1)):
        parts = np.concatenate((outputs, nothing))[order]
        part_lses = np.concatenate((lses, no_lse))[order]
        out, lse = merge_states(parts, part_lses)
        assert np.array_equal(out, outputs[0])
        assert np.array_equal(lse, lses[0])
    for parts in (0, 1, 3):
        out, lse = merge_states(np.repeat(nothing, parts, 0), np.repeat(no_lse, parts, 0))
        assert np.array_equal(out, np.zeros((3, 4)))
        assert np.array_equal(lse, np.full(3, -np.inf))


def test_huge_and_tiny_sums():
    outputs = np.array([[[1.0]], [[3.0]]], np.float32)
    for level in (-1e30, 1e30, -3e38):
        out, lse = merge_states(outputs, np.full((2, 1), level, np.float32))
        assert out.tolist() == [[2.0]]
        assert lse[0] == pytest.approx(level)


def test_nan_stays_in_its_row():
    outputs, lses = normal(2, 3, 4), normal(2, 3)
    wanted, _ = merge_states(outputs, lses)
    outputs[1, 1, 0] = np.nan
    out, lse = merge_states(outputs, lses)
    assert np.isnan(out[1, 0])
    assert np.array_equal(out[[0, 2]], wanted[[0, 2]])
    assert np.isfinite(lse).all()


@pytest.mark.parametrize(
    ("dtype", "lse_dtype", "expected"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float32", "float64"),
    ],
)
def test_dtypes(dtype, lse_dtype, expected):
    outputs, lses = normal(3, 2, 4, dtype=dtype), normal(3, 2, dtype=lse_dtype)
    out, lse = merge_states(outputs, lses)
    assert (out.dtype, lse.dtype) == (dtype, expected)
    wanted, wanted_lse = reference.merge(outputs, lses)
    tolerance = 1e-12 if dtype == "float64" else 2e-3 if dtype == "float16" else 2e-5
    np.testing.assert_allclose(out, wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-12 if expected == "float64" else 2e-5)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    outputs, lses = normal(3, 2, 4).astype(ml_dtypes.bfloat16), normal(3, 2)
    for given_outputs in (outputs, list(outputs)):
        out, lse = merge_states(given_outputs, lses)
        assert (out.dtype, lse.dtype) == (ml_dtypes.bfloat16, np.float32)
        wanted, _ = reference.merge(outputs.astype(np.float64), lses)
        np.testing.assert_allclose(out.astype(float), wanted, rtol=1e-2, atol=1e-2)


def test_strided_parts():
    outputs, lses = normal(3, 2, 8)[..., ::2], normal(2, 3).T
    out, lse = merge_states(outputs, lses)
    again, lse_again = merge_states(outputs.copy(), lses.copy())
    assert np.array_equal(out, again)
    assert np.array_equal(lse, lse_again)


def test_scalars_of_single_queries_keep_float64():
    attention = ruvector.DotProductAttention(4)
    keys = normal(6, 4, dtype=np.float64)
    query = normal(4, seed=1, dtype=np.float64)
    parts = [attention.compute(query, k, k, return_lse=True) for k in (keys[:2], keys[2:])]
    out, lse = merge_states([o for o, _ in parts], [part_lse for _, part_lse in parts])
    wanted, wanted_lse = attention.compute(query, keys, keys, return_lse=True)
    assert lse.dtype == np.float64
    np.testing.assert_allclose(out, wanted, rtol=1e-13)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-13)

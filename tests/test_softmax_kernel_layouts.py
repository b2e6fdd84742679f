"""The softmax kernels on memory as callers have it: strided, read-only, shared."""

from __future__ import annotations

import numpy as np
import pytest
from softmax_cases import (
    LAYOUTS,
    STORAGE,
    compute_dtype,
    problem,
    quiet,
    relaid,
    to_float64,
    to_storage,
)

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = [(1, 17), (17, 33), (3, 3000), (200, 300)]


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, shape, dtype):
    case = problem(
        batch=2,
        heads=4,
        key_heads=2,
        num_queries=shape[0],
        num_keys=shape[1],
        dim=16,
        dim_v=17,
        dtype=dtype,
    )
    for name in ("query", "key", "value"):
        array = relaid(getattr(case, name), layout)
        array.flags.writeable = False
        setattr(case, name, array)
    case.check()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_inputs_that_repeat(axis):
    case = problem(batch=3, heads=4, num_queries=17, num_keys=33)
    for name in ("query", "key", "value"):
        array = getattr(case, name)
        first = array[tuple(slice(0, 1 if a == axis else None) for a in range(4))]
        setattr(case, name, np.broadcast_to(first, array.shape))
    case.check()


def test_rows_that_overlap():
    # A memory of sliding windows over a series: row stride shorter than a row.
    series = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(series, 16)[None, None, :97]
    case = problem(heads=1, num_queries=5, num_keys=97, dim=16)
    case.key = case.value = windows
    case.check()


def test_keys_that_are_the_queries_and_the_values():
    case = problem(heads=3, num_queries=33, num_keys=33)
    case.key = case.value = case.query
    case.check()


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("num_queries", [1, 33])
def test_results_go_where_they_are_wanted(dtype, num_queries):
    case = problem(heads=3, num_queries=num_queries, num_keys=97, dtype=dtype)
    expected, expected_lse, _ = case.reference()
    memory = to_storage(np.full((1, num_queries + 2, 3, 12), 5), dtype)
    out = memory[:, -2:0:-1, :, 2:10].transpose(0, 2, 1, 3)
    lses = np.full((1, num_queries, 6), 5, compute_dtype(dtype))
    lse = lses[:, ::-1, ::2].transpose(0, 2, 1)
    with quiet():
        _kernels.softmax.attend(case.query, case.key, case.value, out, lse, case.spec, 2)
    case.compare_out(to_float64(out), expected)
    case.compare_lse(lse, expected_lse)
    untouched = to_float64(memory)
    assert (untouched[:, [0, -1]] == 5).all()
    assert (untouched[..., [0, 1, 10, 11]] == 5).all()
    assert (lses[..., 1::2] == 5).all()


@pytest.mark.parametrize("dtype", STORAGE)
def test_inputs_are_left_alone(dtype):
    case = problem(num_queries=17, num_keys=33, dtype=dtype, softcap=3.0, causal=True)
    before = [a.copy() for a in (case.query, case.key, case.value)]
    case.attend()
    for now, then in zip((case.query, case.key, case.value), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_storage_types_are_only_storage():
    # What is stored in 16 bits is computed as the same numbers in float32 would be.
    for dtype in ("float16", "bfloat16"):
        case = problem(num_queries=33, num_keys=97, dim=64, dtype=dtype)
        _, lse = case.attend()
        for name in ("query", "key", "value"):
            setattr(case, name, to_float64(getattr(case, name)).astype(np.float32))
        case.dtype = "float32"
        _, expected = case.attend()
        np.testing.assert_allclose(lse, expected, rtol=1e-5, atol=1e-5)


def test_extreme_half_precision_numbers():
    tiny, large = 2.0**-24, 60_000.0
    case = problem(num_queries=17, num_keys=33, dtype="float16")
    case.value[..., 0] = tiny
    case.value[..., 1] = large
    case.value[..., 2] = -large
    out, _ = case.attend()
    np.testing.assert_array_equal(out[..., 0], np.float16(tiny))
    np.testing.assert_allclose(out[..., 1].astype(float), large, rtol=1e-3)
    np.testing.assert_allclose(out[..., 2].astype(float), -large, rtol=1e-3)

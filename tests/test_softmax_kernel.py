"""The softmax kernels over shapes around the vector widths, and over long keys."""

from __future__ import annotations

import numpy as np
import pytest
from softmax_cases import SIZES, STORAGE, problem

pytestmark = pytest.mark.usefixtures("backend")

HEAD_SIZES = (1, 3, 8, 16, 17, 33, 64, 80, 128, 256)


@pytest.mark.parametrize("num_queries", SIZES)
def test_lengths(num_queries):
    for num_keys in SIZES:
        problem(num_keys, heads=1, num_queries=num_queries, num_keys=num_keys, dim=16).check()


@pytest.mark.parametrize("num_queries", [1, 2, 33])
@pytest.mark.parametrize("dim", HEAD_SIZES)
def test_head_sizes(dim, num_queries):
    for dim_v in HEAD_SIZES:
        problem(dim_v, num_queries=num_queries, num_keys=33, dim=dim, dim_v=dim_v).check()


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("num_queries", [1, 3, 17, 64])
def test_storage_types(dtype, num_queries):
    for dim in (1, 7, 16, 64):
        problem(
            dim, num_queries=num_queries, num_keys=97, dim=dim, dim_v=dim + 2, dtype=dtype
        ).check()


@pytest.mark.parametrize(
    ("batch", "heads", "key_heads"),
    [(1, 1, 1), (3, 1, 1), (1, 5, 5), (2, 4, 2), (2, 6, 1), (3, 3, 3), (1, 40, 8)],
)
def test_batch_and_grouped_heads(batch, heads, key_heads):
    for num_queries in (1, 17):
        problem(
            batch=batch,
            heads=heads,
            key_heads=key_heads,
            num_queries=num_queries,
            num_keys=33,
            dim=16,
        ).check()


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize(
    ("heads", "key_heads", "num_queries", "num_keys"),
    [(1, 1, 1, 5000), (1, 1, 3, 70_000), (8, 2, 1, 5000), (2, 1, 5, 20_000), (1, 1, 70, 3000)],
)
def test_many_keys(dtype, heads, key_heads, num_queries, num_keys):
    problem(
        heads=heads,
        key_heads=key_heads,
        num_queries=num_queries,
        num_keys=num_keys,
        dim=16,
        dtype=dtype,
        scale=1.0,
    ).check()


def test_more_scores_than_one_tile_holds():
    problem(heads=1, num_queries=1, num_keys=300_000, dim=3, scale=2.0).check()
    problem(heads=1, num_queries=600, num_keys=1500, dim=5, scale=1.0).check()


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0},
        {"heads": 0, "key_heads": 1},
        {"num_queries": 0},
        {"num_keys": 0},
        {"dim_v": 0},
        {"num_queries": 0, "num_keys": 0},
    ],
    ids=str,
)
def test_empty_axes(shape):
    problem(**shape).check()


def test_large_scores_stay_finite():
    case = problem(num_queries=33, num_keys=97, scale=300.0)
    out, lse = case.attend()
    assert np.isfinite(out).all()
    assert np.isfinite(lse).all()
    expected, expected_lse, _ = case.reference()
    # The rounding of scores of some thousands is what remains.
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)
    np.testing.assert_allclose(out, expected, atol=2e-2)


def test_every_score_hidden_by_its_own_value():
    case = problem(num_queries=3)
    case.key[...] = -np.inf
    case.query[...] = 1
    out, lse = case.attend()
    assert (out == 0).all()
    assert (lse == -np.inf).all()


def test_lse_is_optional(backend):
    from ruvector import _kernels

    case = problem(num_queries=17, num_keys=33)
    expected, _ = case.attend()
    out = np.empty_like(expected)
    _kernels.softmax.attend(case.query, case.key, case.value, out, None, case.spec, 1)
    np.testing.assert_array_equal(out, expected)

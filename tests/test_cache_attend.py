"""Attention to a key-value cache against float64."""

from __future__ import annotations

import numpy as np
import pytest
from cache_cases import DTYPES, attended, close, filled, normal, stored

import ruvector
from ruvector.stream import KVCache

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (40,), (2, 5)])
def test_attend(dtype, heads, leading):
    n = 75
    cache = filled(n, dtype, heads=heads)
    query = normal(*leading, 24)
    keys, values = (stored(normal(n, w, seed=s), dtype, heads) for w, s in ((24, 1), (12, 2)))
    out, lse, weights = cache.attend(query, return_lse=True, return_weights=True)
    want, want_lse, want_weights = attended(query.reshape(-1, 24), keys, values, heads)
    assert out.dtype == lse.dtype == weights.dtype == np.float32
    close(out, want.reshape(*leading, 12))
    close(lse, want_lse.reshape(*leading, heads) if heads > 1 else want_lse.reshape(leading))
    want_weights = want_weights.reshape(heads, *leading, n)
    if leading == (2, 5):
        want_weights = want_weights.swapaxes(0, 1)
    close(weights, want_weights if heads > 1 else want_weights.reshape(*leading, n))
    close(cache.attend(query), out)
    assert type(lse) is (np.ndarray if lse.ndim else np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 4, 30])
def test_options(dtype, m):
    n, heads = 60, 2
    cache = filled(n, dtype)
    rng = np.random.default_rng(0)
    query = normal(m, 24)
    keys, values = (stored(normal(n, w, seed=s), dtype, 2) for w, s in ((24, 1), (12, 2)))
    mask = rng.random((m, n)) < 0.7
    bias = np.where(rng.random((m, n)) < 0.7, normal(m, n), -np.inf).astype(np.float32)
    sinks = np.array([0.5, -0.25], np.float32)
    for given, same in (
        ({"mask": mask}, {"mask": mask[None, None]}),
        ({"mask": bias}, {"bias": bias[None, None]}),
        ({"mask": mask[0]}, {"mask": np.tile(mask[0], (m, 1))[None, None]}),
        ({"causal": True}, {"causal": True}),
        ({"scale": 0.7, "softcap": 2.0}, {"scale": 0.7, "softcap": 2.0}),
        ({"sink_logits": sinks}, {"sink_logits": sinks}),
    ):
        if "mask" in same or "bias" in same:
            same = {name: np.broadcast_to(x, (1, heads, m, n)) for name, x in same.items()}
        out, lse = cache.attend(query, return_lse=True, **given)
        want, want_lse, _ = attended(query, keys, values, heads, **same)
        close(out, want)
        close(lse, want_lse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_grouped_heads(dtype):
    cache = filled(40, dtype)
    keys, values = (stored(normal(40, w, seed=s), dtype, 2) for w, s in ((24, 1), (12, 2)))
    for m in (1, 9):
        query = normal(m, 72)
        out, lse = cache.attend(query, enable_gqa=True, return_lse=True)
        want, want_lse, _ = attended(query, keys, values, 2)
        close(out, want)
        close(lse, want_lse)
    with pytest.raises(ruvector.DimensionMismatchError, match=r"query .* length 24, got"):
        cache.attend(query)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query_dtype", ["float64", "float16", "int64", "bfloat16"])
def test_queries_of_other_types(dtype, query_dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    cache = filled(30, dtype)
    as_type = ml_dtypes.bfloat16 if query_dtype == "bfloat16" else query_dtype
    query = (normal(3, 24) * 2).astype(as_type)
    wide = query.astype(np.float32)
    want, want_lse = cache.attend(wide, return_lse=True)
    out, lse = cache.attend(query, return_lse=True)
    rough = query_dtype in ("float16", "bfloat16")
    assert out.dtype == (np.float32 if query_dtype == "int64" else as_type)
    assert lse.dtype == (np.float64 if query_dtype == "float64" else np.float32)
    np.testing.assert_allclose(
        out.astype(np.float64), want, rtol=1e-2 if rough else 1e-5, atol=1e-2 if rough else 1e-6
    )
    close(lse, want_lse)


def test_out():
    cache = filled(30, "int8")
    query, target = normal(3, 24), np.empty((3, 12), np.float32)
    assert cache.attend(query, out=target) is target
    np.testing.assert_array_equal(target, cache.attend(query))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_cache_is_the_identity_of_merging(dtype):
    cache = KVCache(24, 12, dtype=dtype, num_heads=2)
    out, lse, weights = cache.attend(normal(3, 24), return_lse=True, return_weights=True)
    np.testing.assert_array_equal(out, np.zeros((3, 12)))
    np.testing.assert_array_equal(lse, np.full((3, 2), -np.inf))
    assert weights.shape == (2, 3, 0)
    assert cache.keys.shape == (0, 24)
    assert cache.nbytes == 0
    out, lse = cache.attend(normal(24), return_lse=True)
    assert not out.any()
    assert cache.attend(np.empty((0, 24), np.float32)).shape == (0, 12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_states_of_parts_merge(dtype):
    whole, query = filled(90, dtype), normal(4, 24)
    parts = [KVCache(24, 12, dtype=dtype, num_heads=2) for _ in range(4)]
    keys, values = normal(90, 24, seed=1), normal(90, 12, seed=2)
    for part, (a, b) in zip(parts, ((0, 30), (30, 30), (30, 31), (31, 90)), strict=True):
        part.append(keys[a:b], values[a:b])
    states = [part.attend(query, return_lse=True) for part in parts]
    out, lse = ruvector.merge_states(*zip(*states, strict=True))
    want, want_lse = whole.attend(query, return_lse=True)
    close(out, want)
    close(lse, want_lse)


def test_int8_errors_are_as_stated():
    """The bounds of the module: of a score, and of an output whose weights are given."""
    rng = np.random.default_rng(8)
    n, dim = 300, 64
    keys, values = (rng.standard_normal((n, dim)).astype(np.float32) * 3 for _ in range(2))
    query = rng.standard_normal(dim).astype(np.float32)
    cache = KVCache(dim, dtype="int8")
    cache.append(keys, values)
    weights = np.log(cache.attend(query, return_weights=True)[1].astype(np.float64))
    lse = float(cache.attend(query, return_lse=True)[1])
    scores = keys.astype(np.float64) @ query / np.sqrt(dim)
    bound = np.abs(keys).max(axis=1) / 254 * np.abs(query).sum() / np.sqrt(dim)
    error = np.abs(weights + lse - scores)
    assert (error <= bound + 1e-5).all()
    assert error.max() > 0.02 * bound.max()
    out = cache.attend(query)
    same_weights = np.exp(weights) @ values
    bound = (np.exp(weights) * np.abs(values).max(axis=1)).sum() / 254
    assert np.abs(out - same_weights).max() <= bound + 1e-5
    # Beside all of the rounding: a state that is near the exact one.
    exact, _, _ = attended(query[None], keys, values, 1)
    assert np.abs(out - exact[0]).max() < 0.1

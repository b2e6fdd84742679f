"""Kernels over memories in every storage type, and the way of rows into them and back."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from cache_cases import DTYPES, normal, quantized, stored

from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

pytestmark = pytest.mark.usefixtures("backend")

SIZES = (1, 7, 15, 16, 17, 31, 32, 33, 97)
STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}


def store(x, dtype):
    """Store rows ``(n, heads, d)``; gives them with their scales ``(heads, n)``."""
    out = np.full(x.shape, 77, STORAGE[dtype])
    scales = np.full(x.shape[1::-1], np.nan, np.float32) if dtype == "int8" else None
    assert _kernels.cache.store_rows(x, out, scales)
    return out, scales


def expected(x, dtype):
    n, heads, d = x.shape
    return stored(x.reshape(n, heads * d), dtype, heads).reshape(x.shape)


def same_rows(out, scales, want):
    np.testing.assert_array_equal(_kernels.cache.load_rows(out, scales), np.float32(want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_rows_are_rounded_to_nearest(dtype, d):
    x = normal(9, 3, d) * np.exp2(np.arange(-4, 5, dtype=np.float32))[:, None, None]
    out, scales = store(x, dtype)
    same_rows(out, scales, expected(x, dtype))


def test_whole_numbers_and_scales():
    x = normal(50, 2, 33)
    out, scales = store(x, "int8")
    numbers, scale = quantized(x.reshape(50, 66), 2)
    np.testing.assert_array_equal(out, numbers)
    np.testing.assert_array_equal(scales, scale.T)
    assert np.abs(out).max(axis=-1).min() == 127


def test_error_is_half_a_scale_at_most():
    x = normal(400, 2, 64, seed=3) * np.float32(5)
    out, scales = store(x, "int8")
    error = np.abs(out * scales.T[..., None].astype(np.float64) - x)
    bound = scales.T[..., None].astype(np.float64) / 2
    assert (error <= bound * (1 + 1e-5)).all()
    assert (error > 0.9 * bound).any()


def test_ties_go_to_the_even_number():
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.5], np.float32).reshape(1, 1, 8)
    out, scales = store(x, "int8")
    assert scales == 1
    assert out.ravel().tolist() == [127, 0, 2, 2, 0, -2, -2, 4]


def test_near_ties_are_no_ties():
    """A quotient in float32 would round to a tie and go to the wrong side of it."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 1, 200_000)).astype(np.float32)
    x[..., 0] = 5.3
    scale = np.float32(x.max() / np.float32(127)).astype(np.float64)
    x[..., 1:] = (np.arange(x.size - 1) % 127 + 0.5) * scale
    x[..., 1:] = np.nextafter(x[..., 1:], np.where(rng.random(x.size - 1) < 0.5, 9, -9))
    out, scales = store(x, "int8")
    assert scales[0, 0] == scale
    np.testing.assert_array_equal(out, np.round(x.astype(np.float64) / scale))


def test_zeros_have_no_scale():
    x = normal(4, 2, 17)
    x[1, 0] = 0
    x[2] = -0.0
    out, scales = store(x, "int8")
    assert scales[0, 1] == scales[0, 2] == scales[1, 2] == 0
    assert not out[1, 0].any()
    assert not out[2].any()


@pytest.mark.parametrize("largest", [1e-44, 2.6e-43, 1e-40, 3.4e38])
def test_smallest_and_largest_numbers(largest):
    x = normal(3, 1, 40)
    x *= np.float32(largest) / np.abs(x).max(axis=-1, keepdims=True)
    out, scales = store(x, "int8")
    back = out * scales.T[..., None].astype(np.float64)
    error = np.abs(back - x).max()
    assert error <= max(largest / 254 * 1.001, 64 * 2.0**-149)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 18, 39])
def test_int8_takes_finite_numbers_alone(bad, place):
    x = normal(5, 2, 40)
    x[3, 1, place] = bad
    scales = np.empty((2, 5), np.float32)
    assert not _kernels.cache.store_rows(x, np.empty(x.shape, np.int8), scales)


@pytest.mark.parametrize(
    ("dtype", "last"), [("float16", 65519.996), ("bfloat16", 3.3961773e38)]
)
def test_a_finite_number_stays_finite(dtype, last):
    x = np.full((1, 1, 35), last, np.float32)
    out, _ = store(x, dtype)
    assert np.isfinite(_kernels.cache.load_rows(out, None)).all()
    x[0, 0, 34] = -np.nextafter(np.float32(last), np.float32(np.inf))
    assert not _kernels.cache.store_rows(x, np.empty(x.shape, STORAGE[dtype]), None)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_infinity_and_nan_are_kept(dtype):
    x = np.array([np.inf, -np.inf, np.nan, 1, 0], np.float32).reshape(1, 1, 5)
    out, _ = store(x, dtype)
    np.testing.assert_array_equal(_kernels.cache.load_rows(out, None), x)


@pytest.mark.parametrize("source", ["float16", "bfloat16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_another_storage_type(source, dtype):
    rows, _ = store(normal(6, 2, 21), source)
    wide = expected(normal(6, 2, 21), source).astype(np.float32)
    out, scales = store(rows, dtype)
    same_rows(out, scales, expected(wide, dtype))


def test_strided_rows():
    whole = normal(12, 3, 40)
    x = whole[::-2, 1:, 3:36]
    target = np.zeros((6, 4, 50), np.int8)
    scales = np.zeros((4, 9), np.float32)
    assert _kernels.cache.store_rows(x, target[:, ::2, 5:38], scales[::2, 1:7])
    out, own = store(np.ascontiguousarray(x), "int8")
    np.testing.assert_array_equal(target[:, ::2, 5:38], out)
    np.testing.assert_array_equal(scales[::2, 1:7], own)
    assert not target[:, 1::2].any()
    assert not target[..., :5].any()
    assert not target[..., 38:].any()


# ---- attention -----------------------------------------------------------------------


class Memory:
    """Keys and values ``(heads, n, d)`` of a storage type, laid out as a cache does."""

    def __init__(self, dtype, heads, n, dim, dim_v, seed=0):
        k, v = normal(n, heads, dim, seed=seed + 1), normal(n, heads, dim_v, seed=seed + 2)
        (self.key, key_scales), (self.value, value_scales) = store(k, dtype), store(v, dtype)
        self.scales = {}
        if dtype == "int8":
            self.scales = {"key_scales": key_scales[None], "value_scales": value_scales[None]}
        self.wide = [expected(x, dtype).swapaxes(0, 1)[None] for x in (k, v)]
        self.key, self.value = (x.swapaxes(0, 1)[None] for x in (self.key, self.value))

    def attend(self, query, threads=1, **options):
        spec = AttentionSpec(**({"scale": 0.4} | options | self.scales))
        out = np.empty((*query.shape[:3], self.value.shape[3]), np.float32)
        lse = np.empty(query.shape[:3], np.float32)
        _kernels.softmax.attend(query, self.key, self.value, out, lse, spec, threads)
        return out, lse

    def check(self, query, **options):
        out, lse = self.attend(query, **options)
        want, want_lse, _ = reference.attention(query, *self.wide, **({"scale": 0.4} | options))
        np.testing.assert_allclose(out, want, rtol=2e-5, atol=6e-6)
        np.testing.assert_allclose(lse, want_lse, rtol=2e-5, atol=6e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 3, 33])
def test_attention_over_sizes(dtype, m):
    for n in SIZES:
        Memory(dtype, 2, n, 16, 17).check(normal(1, 2, m, 16))
    for dim in (*SIZES, 64, 130):
        Memory(dtype, 1, 33, dim, 97 - dim % 3).check(normal(1, 1, m, dim))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "key_heads", "m"), [(4, 2, 1), (6, 1, 1), (2, 2, 3), (8, 2, 40), (5, 5, 1)]
)
def test_heads(dtype, heads, key_heads, m):
    Memory(dtype, key_heads, 75, 24, 40).check(normal(1, heads, m, 24))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 4, 50])
def test_options(dtype, m):
    rng = np.random.default_rng(1)
    n, heads = 130, 2
    memory = Memory(dtype, heads, n, 20, 36)
    query = normal(1, heads, m, 20)
    mask = rng.random((1, heads, m, n)) < 0.6
    mask[:, :, m // 2] = False
    bias = np.where(rng.random(mask.shape) < 0.7, normal(*mask.shape), -np.inf)
    memory.check(query, mask=mask)
    memory.check(query, bias=bias.astype(np.float32))
    memory.check(query, causal=True, bottom_right=True)
    memory.check(query, causal=True)
    memory.check(
        query,
        softcap=1.5,
        bottom_right=True,
        left=40,
        right=3,
        num_sinks=2,
        slopes=np.array([0.5, 0.25], np.float32),
        sink_logits=np.array([0.5, -1], np.float32),
        mask=mask,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 40])
def test_weights_and_top_k(dtype, m):
    n = 200
    memory = Memory(dtype, 2, n, 33, 8)
    query = normal(1, 2, m, 33)
    spec = AttentionSpec(scale=0.4, **memory.scales)
    *_, want = reference.attention(query, *memory.wide, scale=0.4)
    weights = np.empty((1, 2, m, n), np.float32)
    _kernels.softmax.weights(query, memory.key, weights, spec, 1)
    np.testing.assert_allclose(weights, want, rtol=2e-5, atol=1e-6)
    indices, best = np.empty((1, 2, m, 5), np.int64), np.empty((1, 2, m, 5), np.float32)
    _kernels.softmax.top_k(query, memory.key, 5, indices, best, spec, 1)
    np.testing.assert_array_equal(np.take_along_axis(weights, indices, -1) > 0, True)
    np.testing.assert_allclose(best, -np.sort(-want, axis=-1)[..., :5], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged(dtype):
    ends_q, ends_k = np.array([0, 2, 2, 9, 30]), np.array([0, 40, 50, 50, 97])
    memory = Memory(dtype, 2, 97, 16, 24)
    memory.check(normal(1, 2, 30, 16), cu_seqlens_q=ends_q, cu_seqlens_k=ends_k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "m"), [(6, 1), (1, 1), (2, 40)])
def test_many_keys(dtype, heads, m):
    Memory(dtype, heads, 7001, 64, 64).check(normal(1, heads, m, 64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "m", "n"), [(6, 1, 9000), (2, 70, 3000)])
def test_threads_do_not_change_a_bit(backend, dtype, heads, m, n):
    if backend[0] != "native":
        pytest.skip("BLAS may sum in another order")
    memory, query = Memory(dtype, heads, n, 64, 64), normal(1, heads, m, 64)
    one, one_lse = memory.attend(query, threads=1)
    for threads in (2, 3):
        out, lse = memory.attend(query, threads=threads)
        np.testing.assert_array_equal(out, one)
        np.testing.assert_array_equal(lse, one_lse)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("m", [1, 40])
def test_what_is_hidden_does_not_leak(dtype, m):
    memory, query = Memory(dtype, 1, 50, 24, 24), normal(1, 1, m, 24)
    mask = np.ones((1, 1, m, 50), bool)
    mask[..., [3, 48]] = False
    want, _ = memory.attend(query, mask=mask)
    if dtype == "int8":
        memory.key[0, 0, 3], memory.value[0, 0, 48] = 127, -127
    else:
        bad = store(np.full((1, 1, 1), np.nan, np.float32), dtype)[0].ravel()[0]
        memory.key[0, 0, 3], memory.value[0, 0, 48] = bad, bad
    out, _ = memory.attend(query, mask=mask)
    np.testing.assert_allclose(out, want, rtol=2e-5, atol=1e-6)


def test_queries_of_other_types_are_no_mixture(backend):
    if backend[0] != "native":
        pytest.skip("NumPy multiplies anything")
    memory = Memory("int8", 1, 5, 8, 8)
    query = normal(1, 1, 1, 8).astype(np.float16)
    out = np.empty(query.shape, np.float16)
    spec = AttentionSpec(scale=1.0, **memory.scales)
    with pytest.raises(TypeError, match="queries of float16 and keys of int8"):
        _kernels.softmax.attend(query, memory.key, memory.value, out, None, spec, 1)

"""A filled cache, and what one stores and attends to in float64."""

from __future__ import annotations

import numpy as np
import reference

from ruvector.stream import KVCache

DTYPES = ("float32", "float16", "bfloat16", "int8")
RTOL, ATOL = 2e-5, 4e-6


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(x, dtype, heads=1):
    """Round float32 rows ``(n, width)`` to a storage type; gives what they then stand for."""
    x = np.asarray(x, np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float64)
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    if dtype == "int8":
        numbers, scale = quantized(x, heads)
        return (numbers * scale[..., None]).reshape(x.shape)
    return x.astype(np.float64)


def quantized(x, heads):
    """Give whole numbers ``(n, heads, d)`` and scales ``(n, heads)`` of float32 rows."""
    parts = x.reshape(len(x), heads, x.shape[1] // heads).astype(np.float64)
    largest = np.abs(parts).max(axis=-1).astype(np.float32)
    scale = (largest / np.float32(127)).astype(np.float64)
    quotient = parts / np.where(scale == 0, 1, scale)[..., None]
    return np.round(quotient), scale


def attended(query, keys, values, heads, **options):
    """Attend in float64 from ``(m, width)`` queries; gives output, L and weights by head."""
    dim = keys.shape[1] // heads
    group = query.shape[1] // keys.shape[1]
    q, k, v = (
        by_head(x, count)
        for x, count in ((query, heads * group), (keys, heads), (values, heads))
    )
    options = {"scale": dim**-0.5, "bottom_right": True} | options
    out, lse, weights = reference.attention(q, k, v, **options)
    return out[0].swapaxes(0, 1).reshape(len(query), -1), lse[0].T, weights[0]


def by_head(x, heads):
    return x.reshape(1, len(x), heads, x.shape[1] // heads).swapaxes(1, 2)


def filled(n=50, dtype="float32", *, dim=24, dim_v=12, heads=2, **options):
    cache = KVCache(dim, dim_v, dtype=dtype, num_heads=heads, **options)
    cache.append(normal(n, dim, seed=1), normal(n, dim_v, seed=2))
    return cache


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=ATOL)

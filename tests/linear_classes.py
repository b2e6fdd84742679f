"""What the tests of LinearAttention and linear_attention share."""

from __future__ import annotations

import numpy as np
import reference_linear

KERNELS = ("softmax", "relu", "elu")
DIM, FEATURES = 16, 40


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def unit(*shape, seed=0):
    x = normal(*shape, seed=seed, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(attention, query, keys, values, mask=None):
    """Compute (out, lse, weights) of queries (m, dim)."""
    kernel, dim = attention.kernel, attention.dim
    projection = attention.parameters().get("projection", np.eye(dim))
    bias = None
    if mask is not None:
        bias = np.where(mask, 0, -np.inf) if mask.dtype == bool else mask
    out, lse, weights = reference_linear.attention(
        query[None, None],
        keys[None, None],
        values[None, None],
        projection,
        kernel=kernel,
        scale=dim**-0.25 if kernel == "softmax" else 1.0,
        epsilon={"softmax": 1e-6, "relu": 1e-3, "elu": 0.0}[kernel],
        gain=1.0 if kernel == "elu" else 1 / len(projection),
        bias=None if bias is None else bias[None],
        causal=attention.causal,
    )
    return out[0, 0], lse[0, 0], weights[0, 0]


def near(got, expected, dtype=np.float32):
    bound = 1e-11 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(got, expected, rtol=bound, atol=bound / 2)

"""The vector utilities and their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ruvector import utils

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float16: 2e-3, np.float32: 2e-6, np.float64: 1e-13}


def softmax64(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def norm64(x):
    return np.sqrt((x * x).sum(axis=-1))


def cosine64(a, b):
    return (a * b).sum(axis=-1) / (norm64(a) * norm64(b))


def batch_normalize64(x, epsilon=1e-8):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon)


def distances64(x):
    return norm64(x[:, None] - x[None])


ROW_FUNCTIONS = {
    "softmax": (utils.softmax, softmax64),
    "attention_weights": (
        lambda x, **kw: utils.attention_weights(x, 0.3, **kw),
        lambda x: softmax64(x / 0.3),
    ),
    "normalize": (utils.normalize, lambda x: x / norm64(x)[..., None]),
    "l2_norm": (utils.l2_norm, norm64),
    "batch_normalize": (utils.batch_normalize, batch_normalize64),
    "pairwise_distances": (utils.pairwise_distances, distances64),
}
every_row_function = pytest.mark.parametrize(
    "function", ROW_FUNCTIONS.values(), ids=ROW_FUNCTIONS
)
SAME_SHAPE = ["softmax", "attention_weights", "normalize", "batch_normalize"]


def vectors(rows, d, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, d)).astype(dtype)


def check(result, expected, dtype):
    tolerance = TOLERANCE[np.dtype(dtype).type]
    assert result.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(result, np.float64), expected, rtol=tolerance, atol=tolerance
    )

"""Points of the Poincare ball, and how near results must come."""

from __future__ import annotations

import numpy as np

CURVATURES = [0.1, 1.0, 4.0]
DTYPES = {"float32": 2e-6, "float64": 1e-12}


def points(*shape, seed=0, radius=0.8, c=1.0, dtype=np.float64):
    """Make points of norms up to `radius` times that of the ball."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x *= radius * rng.random((*shape[:-1], 1)) / np.linalg.norm(x, axis=-1, keepdims=True)
    return (x / np.sqrt(c)).astype(dtype)


def on_sphere(*shape, norm, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return norm * x / np.linalg.norm(x, axis=-1, keepdims=True)


def near(got, wanted, tolerance):
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)

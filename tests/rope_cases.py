"""Configurations and inputs of GraphRoPEAttention, and what comes of them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_rotary

from ruvector import (
    RoPEConfig,
)

TOLERANCES = {"float32": 2e-5, "float64": 1e-10, "float16": 3e-3}
CONFIGS = [
    RoPEConfig(8, 64),
    RoPEConfig(12, 64, num_heads=3, layout="interleaved", base=100.0),
    RoPEConfig(16, 64, num_heads=2, scaling_factor=4.0),
    RoPEConfig(16, 64, num_heads=2, scaling_factor=2.5, scaling="ntk"),
    RoPEConfig(48, 64, num_heads=2, scaling_factor=4, scaling="yarn", layout="interleaved"),
    RoPEConfig(
        32,
        64,
        scaling_factor=8,
        scaling="yarn",
        original_max_position=500,
        beta_fast=16,
        beta_slow=2,
        base=500.0,
    ),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.scaling}-{c.dim}")


def speeds(config):
    """Give angles and amplitude of a configuration by the formulas."""
    return reference_rotary.frequencies(
        config.dim // config.num_heads,
        config.base,
        config.scaling,
        config.scaling_factor,
        config.original_max_position or config.max_position / config.scaling_factor,
        config.beta_fast,
        config.beta_slow,
    )


def by_head(x, config):
    return np.asarray(x, np.float64).reshape(len(x), config.num_heads, -1).swapaxes(0, 1)[None]


def turned(x, positions, config):
    """Turn every head of every row."""
    neighbours = config.layout == "interleaved"
    rows = [
        [reference_rotary.turn(head, p, *speeds(config), neighbours) for head in vector]
        for vector, p in zip(by_head(x, config)[0].swapaxes(0, 1), positions, strict=True)
    ]
    return np.array(rows).reshape(len(x), config.dim)


def expected(config, query, keys, values, places, mask=None):
    """Compute (output, lse, weights), the latter by heads."""
    q, k = (turned(x, p, config) for x, p in zip((query, keys), places, strict=True))
    spec = {}
    if mask is not None:
        whole = np.broadcast_to(mask, (1, config.num_heads, len(query), len(keys)))
        spec["mask" if whole.dtype == bool else "bias"] = whole
    scale = (config.dim // config.num_heads) ** -0.5
    rows = (by_head(x, config) for x in (q, k, values))
    out, lse, weights = reference.attention(*rows, scale=scale, **spec)
    return out[0].swapaxes(0, 1).reshape(len(query), -1), lse[0].T, weights[0]


def arrays(config, m, n, dtype="float32", batch=(), seed=0):
    rng = np.random.default_rng(seed)
    query = () if m is None else (m,)
    shapes = (*batch, *query, config.dim), (*batch, n, config.dim), (*batch, n, config.dim)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def positions(config, *shapes, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.max_position, shape) for shape in shapes]


def near(got, wanted, dtype="float32"):
    bound = TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)

"""Every mechanism with a configuration, and memories of many lengths."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector

DIM = 8

CONFIGS = {
    "dot-product": {"scale": 0.7},
    "multi-head": {"num_heads": 2},
    "flash": {"causal": True},
    "linear": {"num_features": 16},
    "moe": {"num_experts": 3, "top_k": 2, "seed": 1},
    "local-global": {"local_window": 6, "global_tokens": 2},
    "hyperbolic": {"curvature": 0.5},
    "dual-space": {"euclidean_dim": 4, "hyperbolic_dim": 4, "num_heads": 2, "curvature": 1.0},
    "edge-featured": {"edge_dim": 3, "num_heads": 2, "seed": 1},
    "graph-rope": {"max_position": 64, "num_heads": 2},
}
PACKED = ("dot-product", "multi-head", "flash")

TYPES = ("float64", "float16", "bfloat16")

CLASSES = {
    "dot-product": ruvector.DotProductAttention,
    "multi-head": ruvector.MultiHeadAttention,
    "flash": ruvector.FlashAttention,
    "linear": ruvector.LinearAttention,
    "moe": ruvector.MoEAttention,
    "local-global": ruvector.LocalGlobalAttention,
    "hyperbolic": ruvector.HyperbolicAttention,
    "dual-space": ruvector.DualSpaceAttention,
    "edge-featured": ruvector.EdgeFeaturedAttention,
    "graph-rope": ruvector.GraphRoPEAttention,
}


def make(name, **more):
    """Return the attention that the functions here make themselves from the same fields."""
    fields = {**CONFIGS[name], **more}
    if name == "edge-featured":
        fields["node_dim"] = DIM
    elif name != "dual-space":
        fields["dim"] = DIM
    return CLASSES[name](**fields)


def memories(lengths, dim=DIM, dtype=np.float32, seed=0):
    """Return queries, keys and values, one memory a length."""
    rng = np.random.default_rng(seed)
    queries = 0.5 * rng.standard_normal((len(lengths), dim))
    keys, values = (
        [(0.5 * rng.standard_normal((n, dim))).astype(dtype) for n in lengths] for _ in range(2)
    )
    return queries.astype(dtype), keys, values


def type_of(name):
    """Return a dtype by its name; NumPy alone has no bfloat16."""
    if name == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return np.dtype(name).type

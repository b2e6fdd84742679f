"""Inputs of HyperbolicAttention, and what comes of them in float64."""

from __future__ import annotations

import numpy as np
import pytest
import reference_ball

from ruvector import (
    HyperbolicAttention,
)

DIM = 8
TOLERANCES = {"float32": 2e-5, "float64": 1e-9, "float16": 2e-3}


def arrays(m, n, dim_v=DIM, seed=0, radius=0.7, c=1.0, dtype="float32", batch=()):
    """Make queries, keys and values with norms about `radius` of the ball's."""
    rng = np.random.default_rng(seed)
    query = () if m is None else (m,)
    shapes = (*batch, *query, DIM), (*batch, n, DIM), (*batch, n, dim_v)
    return tuple(
        (radius / np.sqrt(c * s[-1]) * rng.standard_normal(s)).astype(dtype) for s in shapes
    )


def expected(attention, query, keys, values, mask=None, temperature=None):
    """Compute (output, lse, weights) of two-dimensional queries in float64."""
    spec = {}
    if mask is not None:
        mask = np.broadcast_to(mask, (1, 1, len(query), len(keys)))
        spec["mask" if mask.dtype == bool else "bias"] = mask
    c = attention.curvature
    _, state, lse, weights = reference_ball.attention(
        *(x[None, None] for x in (query, keys, values)),
        curvature=c,
        distance_scale=1 / (attention.temperature if temperature is None else temperature),
        tangent=attention.inputs == "tangent",
        scale=1.0,
        **spec,
    )
    output = np.stack([reference_ball.midpoint(row, c) for row in state[0, 0]])
    return output, lse[0, 0], weights[0, 0]


def near(got, wanted, dtype="float32", factor=1):
    bound = factor * TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)


ATTENTIONS = [
    HyperbolicAttention(DIM),
    HyperbolicAttention(DIM, curvature=-2.5, temperature=0.3),
    HyperbolicAttention(DIM, inputs="tangent", curvature=0.5),
    HyperbolicAttention(DIM, learn_curvature=True, learn_temperature=True),
]
every_attention = pytest.mark.parametrize(
    "attention", ATTENTIONS, ids=["plain", "curved", "tangent", "learned"]
)

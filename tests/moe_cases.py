"""What the tests of MoEAttention share: mixtures, arrays and the expected result."""

from __future__ import annotations

import numpy as np
import pytest
import reference_moe

from ruvector import MoEAttention

DIM = 12
TOLERANCES = {"float32": 5e-5, "float64": 1e-9, "float16": 6e-3}
TYPES = {
    "standard": ("standard",) * 4,
    "hyperbolic": ("hyperbolic",) * 3,
    "linear": ("linear",) * 3,
    "all": None,
}
every_type = pytest.mark.parametrize("types", TYPES.values(), ids=TYPES)


def mixture(types=None, count=2, experts=None, **fields):
    experts = experts or (5 if types is None else len(types))
    return MoEAttention(
        dim=DIM, num_experts=experts, top_k=count, expert_types=types, seed=3, **fields
    )


def arrays(m, n, seed=0, dtype="float32", batch=(), dim_v=DIM):
    rng = np.random.default_rng(seed)
    query = () if m is None else (m,)
    shapes = (*batch, *query, DIM), (*batch, n, DIM), (*batch, n, dim_v)
    return tuple((0.25 * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def expected(attention, query, keys, values, mask=None, limit=None):
    return reference_moe.mixture(
        attention.parameters(),
        attention.expert_types,
        attention.top_k,
        query,
        keys,
        values,
        mask,
        limit,
    )


def near(got, wanted, dtype="float32"):
    bound = TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)


def by_hand(*logits, **fields):
    """Return standard experts, and queries whose logits are these."""
    logits = np.array(logits, np.float32)
    experts = logits.shape[1]
    attention = MoEAttention(
        dim=DIM, num_experts=experts, expert_types=["standard"] * experts, **fields
    )
    attention.parameters()["router.weight"][...] = np.eye(experts, DIM)
    query = np.zeros((len(logits), DIM), np.float32)
    query[:, :experts] = logits
    return attention, query

"""Shapes at the edge, the same for every attention class: nothing to do, and one memory for
many queries in each way that NumPy can say so."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector

pytestmark = pytest.mark.usefixtures("backend")

DIM, M, N, BATCH = 8, 3, 6, 2
FREE_WIDTH = {
    "dot-product": lambda: ruvector.DotProductAttention(DIM),
    "multi-head": lambda: ruvector.MultiHeadAttention(DIM, 2),
    "flash": lambda: ruvector.FlashAttention(DIM, causal=True),
    "linear": lambda: ruvector.LinearAttention(DIM, 12),
    "linear elu": lambda: ruvector.LinearAttention(DIM, DIM, "elu"),
    "linear causal": lambda: ruvector.LinearAttention(DIM, 12, causal=True),
    "moe": lambda: ruvector.MoEAttention.simple(DIM, 3, 2),
    "hyperbolic": lambda: ruvector.HyperbolicAttention(DIM, inputs="tangent"),
    "frechet": lambda: ruvector.HyperbolicAttention(DIM, aggregation="frechet"),
    "graph-rope": lambda: ruvector.GraphRoPEAttention.simple(DIM, 16),
    "graph-rope heads": lambda: ruvector.GraphRoPEAttention(
        dim=DIM, max_position=16, num_heads=2, layout="interleaved"
    ),
}
CLASSES = {
    **FREE_WIDTH,
    "dual-space": lambda: ruvector.DualSpaceAttention.simple(4, 4, 2, 1.0),
    "edge-featured": lambda: ruvector.EdgeFeaturedAttention(
        node_dim=DIM, edge_dim=2, num_heads=2, seed=0
    ),
}


def normal(*shape, seed=0):
    rng = np.random.default_rng([seed, *shape])
    return 0.3 * rng.standard_normal(shape)


@pytest.mark.parametrize("shape", [(0,), (BATCH, 0), (0, M), (0, 0)])
@pytest.mark.parametrize("name", CLASSES)
def test_gradients_without_queries_are_zero(name, shape):
    attention = CLASSES[name]()
    query, keys, values = normal(*shape, DIM), normal(N, DIM, seed=1), normal(N, DIM, seed=2)
    output, gradients = attention.compute_with_gradients(query, keys, values, query)
    assert output.shape == gradients.query.shape == query.shape
    np.testing.assert_array_equal(gradients.keys, np.zeros_like(keys))
    np.testing.assert_array_equal(gradients.values, np.zeros_like(values))


@pytest.mark.parametrize("name", CLASSES)
def test_an_empty_batch_of_memories(name):
    attention = CLASSES[name]()
    query, memory = normal(0, M, DIM), normal(0, N, DIM)
    output, gradients = attention.compute_with_gradients(query, memory, memory, query)
    assert output.shape == query.shape
    assert gradients.keys.shape == gradients.values.shape == memory.shape


@pytest.mark.parametrize("repeated", ["keys", "values", "both"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_memory_that_the_caller_repeats_has_a_gradient_per_entry(name, repeated):
    attention = CLASSES[name]()
    query, grad = normal(BATCH, M, DIM), normal(BATCH, M, DIM, seed=3)
    memory = [np.broadcast_to(normal(N, DIM, seed=seed), (BATCH, N, DIM)) for seed in (1, 2)]
    copies = [x.copy() for x in memory]
    mixed = [
        memory[i] if repeated in ("both", which) else copies[i]
        for i, which in enumerate(("keys", "values"))
    ]
    _, wanted = attention.compute_with_gradients(query, *copies, grad)
    _, got = attention.compute_with_gradients(query, *mixed, grad)
    for which in ("query", "keys", "values"):
        assert got[which].shape == wanted[which].shape
        np.testing.assert_allclose(got[which], wanted[which], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FREE_WIDTH)
def test_values_of_width_0(name):
    attention = FREE_WIDTH[name]()
    query, keys, values = normal(M, DIM), normal(N, DIM, seed=1), normal(N, 0)
    output, gradients = attention.compute_with_gradients(query, keys, values, normal(M, 0))
    assert output.shape == (M, 0)
    assert gradients.values.shape == (N, 0)
    np.testing.assert_array_equal(gradients.query, np.zeros_like(query))


@pytest.mark.parametrize("which", ["keys", "values", "both"])
@pytest.mark.parametrize("name", CLASSES)
def test_one_vector_that_the_caller_repeats_has_a_gradient_per_entry(name, which):
    attention = CLASSES[name]()
    query, grad = normal(M, DIM), normal(M, DIM, seed=3)
    keys, values = normal(N, DIM, seed=1), normal(N, DIM, seed=2)
    if which != "values":
        keys = np.broadcast_to(keys[0], keys.shape)
    if which != "keys":
        values = np.broadcast_to(values[0], values.shape)
    _, wanted = attention.compute_with_gradients(query, keys.copy(), values.copy(), grad)
    _, got = attention.compute_with_gradients(query, keys, values, grad)
    for array in ("query", "keys", "values"):
        np.testing.assert_allclose(got[array], wanted[array], rtol=1e-9, atol=1e-12)

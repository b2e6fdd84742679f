"""Many Python threads in the same kernels, objects and inputs at once."""

from __future__ import annotations

import sysconfig
import threading

import numpy as np
import pytest
from isolated import output

import ruvector

pytestmark = pytest.mark.usefixtures("backend")

THREADS = 16
ROUNDS = 3
ATTENTION = {
    "dot": ruvector.DotProductAttention(32),
    "heads": ruvector.MultiHeadAttention(32, 4),
    "causal": ruvector.FlashAttention(32, causal=True),
    "local": ruvector.LocalGlobalAttention(32, 5, 1),
    "linear": ruvector.LinearAttention(32, 16, seed=1),
    "ball": ruvector.HyperbolicAttention(32, inputs="tangent"),
    "dual": ruvector.DualSpaceAttention(
        euclidean_dim=20, hyperbolic_dim=12, num_heads=2, curvature=1.0
    ),
    "experts": ruvector.MoEAttention(dim=32, num_experts=4, top_k=2, seed=1),
    "edges": ruvector.EdgeFeaturedAttention(node_dim=32, edge_dim=3, num_heads=2, seed=1),
    "rotary": ruvector.GraphRoPEAttention(dim=32, max_position=128),
}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def at_once(work):
    """Run ``work(i)`` in 16 threads that start together; gives the results in order."""
    start = threading.Barrier(THREADS)
    results: list = [None] * THREADS

    def run(i):
        start.wait(timeout=60)
        try:
            results[i] = [work(i) for _ in range(ROUNDS)]
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def same(results, alone):
    for i, rounds in enumerate(results):
        for arrays in rounds:
            for x, y in zip(arrays, alone(i), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(ATTENTION))
@pytest.mark.parametrize("length", [8, 120])
def test_one_object_and_one_memory(name, length):
    attention = ATTENTION[name]
    keys, values = normal(length, 32), normal(length, 32, seed=1)
    queries = [normal(*((32,) if i % 2 else (length, 32)), seed=2 + i) for i in range(THREADS)]

    lse = {} if name == "experts" else {"return_lse": True}  # a mixture has no single one

    def work(i):
        return attention.compute(queries[i], keys, values, return_weights=True, **lse)

    same(at_once(work), work)


@pytest.mark.parametrize("name", list(ATTENTION))
def test_gradients_through_one_object(name):
    attention = ATTENTION[name]
    keys, values = normal(60, 32), normal(60, 32, seed=1)
    queries = [normal(60, 32, seed=2 + i) for i in range(THREADS)]
    width = attention.compute(queries[0], keys, values).shape[-1]
    grad = normal(60, width, seed=40)

    def work(i):
        out, grads = attention.compute_with_gradients(queries[i], keys, values, grad)
        return out, grads.query, grads.keys, grads.values

    same(at_once(work), work)


def test_one_cache_read_by_all():
    cache = ruvector.KVCache(32, num_heads=2)
    cache.append(normal(500, 32), normal(500, 32, seed=1))

    def work(i):
        return cache.attend(normal(3, 32, seed=2 + i), return_lse=True)

    same(at_once(work), work)


def test_every_routed_row_is_counted():
    attention = ruvector.MoEAttention(dim=32, num_experts=4, top_k=2, seed=1)
    keys, query = normal(20, 32), normal(5, 32, seed=1)
    attention.compute(query, keys, keys)
    alone = attention.routing_stats
    attention.reset_routing_stats()
    at_once(lambda i: (attention.compute(query, keys, keys),))
    together = attention.routing_stats
    np.testing.assert_array_equal(together.routings, THREADS * ROUNDS * alone.routings)
    assert together.queries == THREADS * ROUNDS * len(query)


def test_an_optimizer_for_each_thread():
    start, loss = normal(40, 8), ruvector.InfoNCELoss(0.1)

    def work(i):
        params, optimizer = start.copy(), ruvector.AdamWOptimizer(0.01)
        positive = normal(40, 8, seed=2 + i)
        for _ in range(3):
            found = loss.compute_with_gradients(params, positive)
            params = optimizer.step(found.anchor, params=params)
        return (params,)

    same(at_once(work), work)


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="it has a GIL")
def test_the_gil_stays_off():
    """One module that does not declare itself turns it on, with a warning."""
    code = (
        "import importlib, pkgutil, sys, ruvector, ruvector._kernels as kernels\n"
        "for module in pkgutil.iter_modules(kernels.__path__, 'ruvector._kernels.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sys._is_gil_enabled())"
    )
    assert output(code, PYTHONWARNINGS="error") == "False"


@pytest.mark.parametrize("num_threads", [1, 2])
def test_functions_under_a_thread_count_of_their_own(num_threads):
    key, value = normal(2, 4, 100, 32), normal(2, 4, 100, 32, seed=1)
    mask = normal(100, 100, seed=2) > 0

    def work(i):
        query = normal(2, 4, 100, 32, seed=3 + i)
        with ruvector.num_threads(num_threads):
            out, lse = ruvector.scaled_dot_product_attention(
                query, key, value, mask, is_causal=True, return_lse=True
            )
            indices, weights = ruvector.top_k_keys(query, key, 3)
        return out, lse, indices, weights

    same(at_once(work), work)


def test_errors_in_some_threads_leave_the_others_alone():
    attention = ATTENTION["heads"]
    keys, query = normal(50, 32), normal(32, seed=1)

    def work(i):
        if i % 2:
            with pytest.raises(ruvector.DimensionMismatchError):
                attention.compute(query[:7], keys, keys)
            return ()
        return (attention.compute(query, keys, keys),)

    same(at_once(work), work)

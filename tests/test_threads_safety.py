"""Many Python threads in the same kernels, objects and inputs at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import ruvector

pytestmark = pytest.mark.usefixtures("backend")

THREADS = 16
ROUNDS = 3
ATTENTION = {
    "dot": ruvector.DotProductAttention(32),
    "heads": ruvector.MultiHeadAttention(32, 4),
    "causal": ruvector.FlashAttention(32, causal=True),
    "local": ruvector.LocalGlobalAttention(32, 5, 1),
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

    def work(i):
        return attention.compute(queries[i], keys, values, return_lse=True, return_weights=True)

    same(at_once(work), work)


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

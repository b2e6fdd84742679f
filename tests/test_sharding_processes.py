"""Attention over a memory in shards that a pool of processes computes."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from isolated import python
from numpy.testing import assert_array_equal
from shard_cases import arrays, cut

from ruvector._shard_tasks import StateTask
from ruvector.sharding import sharded_attention


class TestProcesses:
    def test_a_map_travels_by_name(self, tmp_path):
        _, keys, _ = arrays(n=50_000)
        np.save(tmp_path / "k.npy", keys)
        mapped = np.load(tmp_path / "k.npy", mmap_mode="r")
        shards = cut(mapped, mapped, [10, 30_000])
        captured = []

        class Capturing(ThreadPoolExecutor):
            def submit(self, task):
                captured.append(pickle.dumps(task))
                return super().submit(pickle.loads(captured[-1]))

        with Capturing(1) as pool:
            output = sharded_attention(keys[0], shards, executor=pool)
        assert max(map(len, captured)) < 3000
        assert all(isinstance(pickle.loads(sent), StateTask) for sent in captured)
        assert_array_equal(output, sharded_attention(keys[0], shards))

    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_pool_of_processes(self, method, tmp_path):
        _, keys, values = arrays(n=200)
        np.save(tmp_path / "k.npy", keys)
        np.save(tmp_path / "v.npy", values)
        for name in ("dk", "dv"):
            np.save(tmp_path / f"{name}.npy", np.zeros_like(keys))
        script = tmp_path / "script.py"
        script.write_text(PROCESSES)
        done = python(str(script), str(tmp_path), method)
        assert done.stdout.split() == ["True"] * 5, done.stderr


PROCESSES = """
import sys, warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import numpy as np
import ruvector
from ruvector.sharding import sharded_attention, sharded_attention_backward

# Forking a process that has threads is on purpose.
warnings.simplefilter("ignore", DeprecationWarning)


def main():
    folder = sys.argv[1]
    k, v = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("k", "v"))
    dk, dv = (np.load(f"{folder}/{name}.npy", mmap_mode="r+") for name in ("dk", "dv"))
    parts = slice(0, 60), slice(60, 61), slice(61, 200)
    shards = [(k[part], v[part]) for part in parts]
    query = np.array(k[:3])
    # OpenMP has run here before the fork.
    big = np.ones((64, 2048), np.float32)
    ruvector.DotProductAttention(2048).compute(big, big, big)
    with ProcessPoolExecutor(2, get_context(sys.argv[2])) as pool:
        for attention in (
            ruvector.DotProductAttention(8),
            ruvector.HyperbolicAttention(8),
            ruvector.LinearAttention(8, 16),
        ):
            output = sharded_attention(query, shards, attention=attention, executor=pool)
            print(np.allclose(output, attention.compute(query, k, v), atol=1e-5))
        output, lse = sharded_attention(query, shards, executor=pool, return_lse=True)
        grads = sharded_attention_backward(
            query, shards, output, lse, np.ones_like(query), executor=pool,
            out=[(dk[part], dv[part]) for part in parts],
        )
    _, wanted = ruvector.DotProductAttention(8).compute_with_gradients(
        query, k, v, np.ones_like(query)
    )
    print(np.allclose(grads.query, wanted.query, atol=1e-5))
    written = np.load(f"{folder}/dk.npy"), np.load(f"{folder}/dv.npy")
    print(np.allclose(written, (wanted.keys, wanted.values), atol=1e-5))


if __name__ == "__main__":
    main()
"""

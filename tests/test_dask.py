"""Attention over dask arrays: results, gradients, and real worker processes, one killed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from batch_cases import CONFIGS, DIM, make
from isolated import python
from numpy.testing import assert_allclose, assert_array_equal

import ruvector
from ruvector import DimensionMismatchError, InvalidConfigError, InvalidMaskError

pytestmark = pytest.mark.peers
N = 50


@pytest.fixture
def rvdask():
    pytest.importorskip("dask.array")
    import ruvector.dask

    return ruvector.dask


@pytest.fixture
def da():
    return pytest.importorskip("dask.array")


def arrays(m=5, dtype=np.float32):
    rng = np.random.default_rng(0)
    return (0.5 * rng.standard_normal((m, DIM))).astype(dtype), *(
        (0.5 * rng.standard_normal((2, N, DIM))).astype(dtype)
    )


def compute(*collections):
    import dask

    return dask.compute(*collections, scheduler="threads")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "moe"])
def test_equals_the_whole(rvdask, da, name):
    query, keys, values = arrays()
    attention = make(name)
    options = {"positions": [0, 9, 30, 44, 49]} if name == "local-global" else {}
    # Blocks that differ, an empty one, and one key alone.
    chunked = da.from_array(keys, ((20, 0, 1, 29), (3, 5)))
    result = rvdask.attention(
        query, chunked, da.from_array(values, (13, 8)),
        attention=attention, return_lse=True, **options,
    )  # fmt: skip
    output, lse = compute(*result)
    expected, expected_lse = attention.compute(query, keys, values, return_lse=True, **options)
    assert [x.shape for x in result] == [output.shape, lse.shape]
    assert [x.dtype for x in result] == [output.dtype, lse.dtype]
    assert output.dtype == np.float32
    assert_allclose(output, expected, rtol=2e-5, atol=2e-6)
    assert_allclose(lse, expected_lse, rtol=1e-5, atol=1e-5)


class TestAttention:
    def test_one_query_causal_rules_and_masks(self, rvdask, da):
        query, keys, values = arrays()
        attention = ruvector.DotProductAttention(DIM)
        k, v = da.from_array(keys, (7, 8)), da.from_array(values, (7, 8))
        output, lse = compute(*rvdask.attention(query[0], k, v, return_lse=True))
        expected, expected_lse = attention.compute(query[0], keys, values, return_lse=True)
        assert_allclose(output, expected, atol=1e-6)
        assert lse.shape == ()
        assert_allclose(lse, expected_lse, atol=1e-6)
        (output,) = compute(rvdask.attention(query, k, v, is_causal=True))
        causal = ruvector.FlashAttention(DIM, causal=True)
        assert_allclose(output, causal.compute(query, keys, values), atol=1e-6)
        mask = np.arange(N) % 3 > 0
        (output,) = compute(rvdask.attention(query, k, v, mask=mask))
        expected = attention.compute(query, keys, values, mask=mask)
        assert_allclose(output, expected, atol=1e-6)

    def test_the_same_as_over_shards_to_the_bit(self, rvdask, da):
        from ruvector.sharding import sharded_attention

        query, keys, values = arrays()
        shards = [(keys[a : a + 9], values[a : a + 9]) for a in range(0, N, 9)]
        k, v = da.from_array(keys, (9, 8)), da.from_array(values, (9, 8))
        (output,) = compute(rvdask.attention(query, k, v))
        assert_array_equal(output, sharded_attention(query, shards, num_threads=1))

    def test_blocks_of_unknown_size(self, rvdask, da):
        query, keys, values = arrays()
        wanted = np.arange(N) % 2 == 0
        k, v = (da.from_array(x, (9, 8))[da.from_array(wanted, 9)] for x in (keys, values))
        (output,) = compute(rvdask.attention(query, k, v))
        expected = ruvector.DotProductAttention(DIM).compute(
            query, keys[wanted], values[wanted]
        )
        assert_allclose(output, expected, atol=1e-6)
        with pytest.raises(InvalidConfigError, match="shards of known lengths"):
            rvdask.attention(query, k, v, is_causal=True)
        for options in ({"mask": wanted}, {"attention": make("graph-rope")}):
            with pytest.raises(InvalidConfigError, match="need blocks of known sizes"):
                rvdask.attention(query, k, v, **options)

    def test_maps_of_files(self, rvdask, tmp_path):
        query, keys, values = arrays()
        np.save(tmp_path / "k.npy", keys)
        np.save(tmp_path / "v.npy", values)
        k, v = (rvdask.map_npy(tmp_path / f"{name}.npy", 11) for name in "kv")
        assert k.chunks[0] == (11, 11, 11, 11, 6)
        assert_array_equal(compute(k)[0], keys)
        (output,) = compute(rvdask.attention(query, k, v))
        expected = ruvector.DotProductAttention(DIM).compute(query, keys, values)
        assert_allclose(output, expected, atol=1e-6)
        with pytest.raises(InvalidConfigError, match="rows must be an integer of at least 1"):
            rvdask.map_npy(tmp_path / "k.npy", 0)

    def test_kernel_threads_of_a_task(self, rvdask, da):
        class Counting(ruvector.EdgeFeaturedAttention):
            def compute(self, *arrays, **keywords):
                counted.add(ruvector.get_num_threads())
                return super().compute(*arrays, **keywords)

        counted = set()
        query, keys, values = arrays()
        k, v = da.from_array(keys, (9, 8)), da.from_array(values, (9, 8))
        attention = Counting(node_dim=DIM, edge_dim=1, num_heads=1)
        compute(rvdask.attention(query, k, v, attention=attention))
        assert counted == {1}
        counted.clear()
        compute(rvdask.attention(query, k, v, attention=attention, num_threads=3))
        assert counted == {3}

    def test_errors(self, rvdask, da):
        query, keys, values = arrays()
        k, v = da.from_array(keys, (9, 8)), da.from_array(values, (9, 8))
        with pytest.raises(TypeError, match="keys must be a dask array, got ndarray"):
            rvdask.attention(query, keys, v)
        with pytest.raises(DimensionMismatchError, match="values must have 2 axes, got shape"):
            rvdask.attention(query, k, v[:, 0])
        with pytest.raises(DimensionMismatchError, match="values must hold 50 vectors, one pe"):
            rvdask.attention(query, k, v[:49])
        with pytest.raises(DimensionMismatchError, match="keys must have width 8, got 5"):
            rvdask.attention(query, k[:, :5], v)
        with pytest.raises(InvalidMaskError, match="mask must have 50 entries on its last axi"):
            rvdask.attention(query, k, v, mask=np.ones(49, bool))
        with pytest.raises(InvalidConfigError, match="num_threads must be an integer of at l"):
            rvdask.attention(query, k, v, num_threads=0)
        with pytest.raises(InvalidConfigError, match="merge, got MoEAttention"):
            rvdask.attention(query, k, v, attention=make("moe"))


@pytest.mark.parametrize("name", ["dot-product", "multi-head", "flash", "graph-rope"])
def test_gradients_equal_those_of_the_whole(rvdask, da, name):
    query, keys, values = arrays(dtype=np.float64)
    attention = make(name)
    grad = np.random.default_rng(1).standard_normal((5, DIM))
    k, v = da.from_array(keys, (9, 8)), da.from_array(values, (20, 8))
    output, lse = rvdask.attention(query, k, v, attention=attention, return_lse=True)
    grads = rvdask.attention_backward(query, k, v, output, lse, grad, attention=attention)
    _, expected = attention.compute_with_gradients(query, keys, values, grad)
    assert grads.keys.chunks == k.chunks
    for actual, lazy, wanted in zip(
        compute(*grads), grads, (expected.query, expected.keys, expected.values), strict=True
    ):
        assert (lazy.shape, lazy.dtype) == (wanted.shape, np.float64)
        assert_allclose(actual, wanted, atol=1e-11)


def test_missing_dask_is_said(tmp_path):
    (tmp_path / "dask.py").write_text("raise ImportError('not here')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ruvector, ruvector.sharding, ruvector.batch\n"
        "assert 'dask' not in sys.modules\n"
        "import ruvector.dask"
    )
    done = python("-c", code)
    assert "ImportError: ruvector.dask needs dask: pip install 'ruvector[dask]'" in done.stderr


@pytest.mark.slow
class TestWorkerProcesses:
    @pytest.fixture(autouse=True)
    def distributed(self):
        if importlib.util.find_spec("distributed") is None:
            pytest.skip("dask's distributed scheduler is not installed")

    def run(self, tmp_path, body):
        np.save(tmp_path / "k.npy", arrays()[1])
        np.save(tmp_path / "v.npy", arrays()[2])
        script = tmp_path / "script.py"
        script.write_text(CLUSTER + body)
        done = python(str(script), str(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def test_equals_one_machine(self, tmp_path):
        assert self.run(tmp_path, EQUAL) == ["True"] * 5

    def test_a_worker_killed_in_the_middle(self, tmp_path):
        assert self.run(tmp_path, KILLED) == ["True"] * 3


CLUSTER = """
import os, sys, time
import dask, dask.array as da, numpy as np
from distributed import Client, LocalCluster
import ruvector, ruvector.dask
from ruvector.sharding import sharded_attention

folder = sys.argv[1]


def main():
    keys, values = np.load(f"{folder}/k.npy"), np.load(f"{folder}/v.npy")
    with LocalCluster(
        n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster, Client(cluster) as client:
        body(client, keys, values)
"""

EQUAL = """

def threads():
    return os.environ["OMP_NUM_THREADS"], ruvector.get_num_threads(), os.getpid()


def body(client, keys, values):
    seen = set(client.run(threads).values())
    print(len(seen) == 3 and {(variable, count) for variable, count, _ in seen} == {("1", 1)})
    k, v = (ruvector.dask.map_npy(f"{folder}/{name}.npy", 7) for name in "kv")
    attention = ruvector.DotProductAttention(8)
    expected, grads = attention.compute_with_gradients(
        keys[:3], keys, values, np.ones((3, 8), np.float32)
    )
    output, lse = ruvector.dask.attention(keys[:3], k, v, return_lse=True, num_threads=2)
    print(np.allclose(output.compute(), expected, atol=1e-6))
    backward = ruvector.dask.attention_backward(
        keys[:3], k, v, output, lse, np.ones((3, 8), np.float32)
    )
    found = dask.compute(*backward)
    wanted = grads.query, grads.keys, grads.values
    print(all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted)))
    mapped = [np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in "kv"]
    shards = [tuple(x[a : a + 20] for x in mapped) for a in range(0, 50, 20)]
    for attention in (attention, ruvector.HyperbolicAttention(8)):
        output = sharded_attention(
            keys[:3], shards, attention=attention, executor=client.get_executor()
        )
        print(np.allclose(output, attention.compute(keys[:3], keys, values), atol=1e-5))


if __name__ == "__main__":
    main()
"""

KILLED = """
import signal

def block(name, part):
    # The fourth block waits, the first time, for the death of its worker.
    died = f"{folder}/died"
    if name == "k" and part == 3 and not os.path.exists(died):
        with open(f"{folder}/waits", "w") as file:
            file.write(str(os.getpid()))
        os.rename(f"{folder}/waits", died)
        time.sleep(60)
    return np.load(f"{folder}/{name}.npy", mmap_mode="r")[part * 10 : part * 10 + 10]


def body(client, keys, values):
    lazy = dask.delayed(block)
    k, v = (
        da.concatenate(
            [da.from_delayed(lazy(name, part), (10, 8), np.float32) for part in range(5)]
        )
        for name in "kv"
    )
    query = keys[:3]
    workers = {worker["pid"] for worker in client.run(lambda: {"pid": os.getpid()}).values()}
    future = client.compute(ruvector.dask.attention(query, k, v))
    deadline = time.monotonic() + 30
    while not os.path.exists(f"{folder}/died") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)  # the other blocks have their states by now
    pid = int(open(f"{folder}/died").read())
    print(pid in workers)
    os.kill(pid, signal.SIGKILL)
    output = future.result(timeout=60)
    expected = ruvector.DotProductAttention(8).compute(query, keys, values)
    print(np.allclose(output, expected, atol=1e-6))
    shards = [(keys[a : a + 10], values[a : a + 10]) for a in range(0, 50, 10)]
    print(np.array_equal(output, sharded_attention(query, shards, num_threads=1)))


if __name__ == "__main__":
    main()
"""

"""The rows of a key-value cache against a plain list of them, and what else it promises."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import isolated
import numpy as np
import pytest
from cache_cases import DTYPES, filled, normal, stored

import ruvector
from ruvector.stream import KVCache

pytestmark = pytest.mark.usefixtures("backend")


# ---- rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_read_back(dtype):
    cache = filled(33, dtype)
    for got, width, seed in ((cache.keys, 24, 1), (cache.values, 12, 2)):
        assert got.dtype == np.float32
        assert not got.flags.writeable
        want = stored(normal(33, width, seed=seed), dtype, 2)
        np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_many_or_none(dtype):
    keys, values = normal(9, 24), normal(9, 12)
    cache = KVCache(24, 12, dtype=dtype)
    cache.append(keys[0], values[0])
    cache.append(keys[1:4], values[1:4])
    cache.append([], np.empty((0, 12)))
    cache.append(keys[4:5].tolist(), values[4:5].tolist())
    cache.append(list(keys[5:]), list(values[5:]))
    whole = KVCache(24, 12, dtype=dtype)
    whole.append(keys, values)
    np.testing.assert_array_equal(cache.keys, whole.keys)
    np.testing.assert_array_equal(cache.values, whole.values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [1, 3, 7, 500])
def test_a_window_keeps_the_latest_and_the_sinks(dtype, step):
    keys, values = normal(500, 24), normal(500, 12)
    cache = KVCache(24, 12, dtype=dtype, num_heads=2, window=20, num_sink_tokens=3)
    for i in range(0, 500, step):
        cache.append(keys[i : i + step], values[i : i + step])
    kept = [0, 1, 2, *range(480, 500)]
    assert len(cache) == 23
    np.testing.assert_array_equal(cache.keys, stored(keys[kept], dtype, 2).astype(np.float32))
    np.testing.assert_array_equal(
        cache.values, stored(values[kept], dtype, 2).astype(np.float32)
    )


def test_rows_of_the_cache_itself():
    """They move to the front of their memory while they are appended."""
    cache = KVCache(4, window=100)
    rows = normal(1000, 4)
    for i in range(0, 1000, 10):
        cache.append(rows[i : i + 10], rows[i : i + 10])
        want = cache.keys[:7].copy()
        cache.append(cache.keys[:7], cache.values[:7])
        np.testing.assert_array_equal(cache.keys[-7:], want)
        np.testing.assert_array_equal(cache.values[-7:], want)


def test_what_a_window_passes_over_takes_no_room_but_is_checked():
    cache = KVCache(4, dtype="int8", window=10, num_sink_tokens=2)
    cache.append(normal(1, 4), normal(1, 4))
    keys = normal(5000, 4)
    keys[2500, 1] = np.nan
    with pytest.raises(ruvector.InvalidConfigError, match="key must hold finite"):
        cache.append(keys, keys)
    assert len(cache) == 1
    keys[2500, 1] = 0
    cache.append(keys, keys)
    assert len(cache) == 12
    assert max(len(x) for x in cache._store._arrays) < 100
    assert cache.nbytes == 12 * 8 + 12 * 8


def test_growth_copies_a_row_a_bounded_number_of_times(monkeypatch):
    from ruvector import _cache_rows

    moved = []
    place = _cache_rows.RowStore._place

    def counted(self, arrays):
        moved.append(len(self))
        place(self, arrays)

    monkeypatch.setattr(_cache_rows.RowStore, "_place", counted)
    row = np.zeros(2, np.float32)
    growing, sliding = KVCache(2), KVCache(2, window=300, num_sink_tokens=4)
    bounded = KVCache(2, capacity=300)
    for cache, most in ((growing, 3 * 5000), (sliding, 9 * 5000), (bounded, 9 * 5000)):
        moved.clear()
        for _ in range(5000):
            if cache is bounded and len(cache) == 300:
                cache.evict()
            cache.append(row, row)
        assert sum(moved) < most
        assert max(len(x) for x in cache._store._arrays) <= 2 * len(cache)


def test_truncate_rolls_back():
    cache = filled(20, "int8")
    want = cache.attend(normal(24))
    cache.append(normal(5, 24), normal(5, 12))
    cache.truncate(20)
    np.testing.assert_array_equal(cache.attend(normal(24)), want)
    cache.truncate(0)
    assert len(cache) == 0
    for wrong in (-1, 1, 2.0, True, "1"):
        with pytest.raises(ruvector.InvalidConfigError, match="length"):
            cache.truncate(wrong)


@pytest.mark.parametrize("dtype", DTYPES)
def test_evict(dtype):
    cache = filled(20, dtype, num_sink_tokens=2)
    keys = cache.keys.copy()
    cache.evict()
    np.testing.assert_array_equal(cache.keys, keys[[0, 1, *range(3, 20)]])
    cache.evict(np.int64(4))
    np.testing.assert_array_equal(cache.keys, keys[[0, 1, *range(7, 20)]])
    cache.evict([0, 14, 3, 3])
    left = [1, 7, *range(9, 19)]
    np.testing.assert_array_equal(cache.keys, keys[left])
    gone = np.zeros(12, bool)
    gone[[1, 11]] = True
    cache.evict(gone)
    np.testing.assert_array_equal(cache.keys, keys[[1, *range(9, 18)]])
    cache.evict([])
    cache.evict(0)
    cache.evict(8)
    np.testing.assert_array_equal(cache.keys, keys[[1, 9]])


def test_evict_errors():
    cache = filled(5, num_sink_tokens=2)
    for wrong, error in (
        (4, ruvector.InvalidConfigError),
        (-1, ruvector.InvalidConfigError),
        (True, ruvector.InvalidConfigError),
        ([5], ruvector.InvalidConfigError),
        ([-1], ruvector.InvalidConfigError),
        ([[1]], ruvector.DimensionMismatchError),
        (np.ones(4, bool), ruvector.DimensionMismatchError),
        ([0.5], TypeError),
    ):
        with pytest.raises(error, match="rows"):
            cache.evict(wrong)
    assert len(cache) == 5


def test_clear():
    cache = filled(30, "int8", capacity=40)
    cache.clear()
    assert len(cache) == 0
    cache.append(normal(40, 24), normal(40, 12))
    assert len(cache) == 40


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_append_that_raises_changes_nothing(dtype):
    cache = filled(10, dtype, capacity=12)
    keys, values, query = cache.keys.copy(), cache.values.copy(), normal(24)
    want = cache.attend(query)
    bad = normal(2, 24)
    for key, value, error, message in (
        (normal(23), normal(12), ruvector.DimensionMismatchError, r"key must have shape \(24,"),
        (normal(24), normal(2, 13), ruvector.DimensionMismatchError, "value must have shape"),
        (normal(2, 24), normal(12), ruvector.DimensionMismatchError, "one per key"),
        (normal(1, 2, 24), normal(12), ruvector.DimensionMismatchError, "key must have shape"),
        (bad, np.ones((2, 12), complex), TypeError, "value must hold real"),
        (normal(3, 24), normal(3, 12), ruvector.InvalidConfigError, "capacity .* 13 .* got 12"),
    ):
        with pytest.raises(error, match=message):
            cache.append(key, value)
    bad[1, 3] = np.nan
    if dtype == "int8":
        with pytest.raises(ruvector.InvalidConfigError, match=r"key must hold finite .* int8"):
            cache.append(bad, normal(2, 12))
        with pytest.raises(ruvector.InvalidConfigError, match=r"value must hold .* int8"):
            cache.append(normal(2, 24), bad[:, :12])
    if dtype == "float16":
        with pytest.raises(ruvector.InvalidConfigError, match="range of float16"):
            cache.append(np.full(24, 7e4), normal(12))
    if dtype != "int8":
        with pytest.raises(ruvector.InvalidConfigError, match=f"key .* range of {dtype}"):
            cache.append(np.full(24, 1e39), normal(12))
    assert len(cache) == 10
    np.testing.assert_array_equal(cache.keys, keys)
    np.testing.assert_array_equal(cache.values, values)
    np.testing.assert_array_equal(cache.attend(query), want)


def test_memory_that_is_not_there_changes_nothing(monkeypatch):
    from ruvector import _cache_rows

    cache = filled(10)
    want = cache.keys.copy()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(_cache_rows, "_empty", fail)
    cache.append(normal(1, 24), normal(1, 12))
    with pytest.raises(MemoryError):
        cache.append(normal(900, 24), normal(900, 12))
    assert len(cache) == 11
    np.testing.assert_array_equal(cache.keys[:10], want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": 2.0}, "dim"),
        ({"dim": 8, "dim_v": 0}, "dim_v"),
        ({"dim": 8, "capacity": 0}, "capacity"),
        ({"dim": 8, "dtype": "float64"}, "dtype"),
        ({"dim": 8, "dtype": np.float32}, "dtype"),
        ({"dim": 8, "num_heads": 3}, "num_heads must divide dim"),
        ({"dim": 8, "dim_v": 6, "num_heads": 4}, "num_heads must divide dim_v"),
        ({"dim": 8, "window": 0}, "window"),
        ({"dim": 8, "num_sink_tokens": -1}, "num_sink_tokens"),
        ({"dim": 8, "window": 8, "num_sink_tokens": 3, "capacity": 10}, "capacity .* 11"),
    ],
)
def test_parameters(options, message):
    with pytest.raises(ruvector.InvalidConfigError, match=message):
        KVCache(**options)


def test_attend_errors():
    cache = filled(10)
    for options, error, message in (
        ({"query": normal(23)}, ruvector.DimensionMismatchError, "query"),
        ({"query": normal(1, 1, 1, 24)}, ruvector.DimensionMismatchError, "query"),
        ({"query": np.float32(1)}, ruvector.DimensionMismatchError, "query"),
        ({"query": "no"}, TypeError, "query"),
        ({"mask": np.ones(9, bool)}, ruvector.InvalidMaskError, r"mask must have shape \(10,"),
        ({"mask": np.ones((2, 10), bool)}, ruvector.InvalidMaskError, "mask"),
        ({"mask": np.ones(10, int)}, ruvector.InvalidMaskError, "mask"),
        ({"causal": 1}, ruvector.InvalidConfigError, "causal"),
        ({"enable_gqa": None}, ruvector.InvalidConfigError, "enable_gqa"),
        ({"scale": "x"}, ruvector.InvalidConfigError, "scale"),
        ({"softcap": 0.0}, ruvector.InvalidConfigError, "softcap"),
        ({"sink_logits": np.zeros(3)}, ruvector.DimensionMismatchError, "sink_logits"),
        ({"out": np.empty(13, np.float32)}, ruvector.DimensionMismatchError, "out"),
    ):
        with pytest.raises(error, match=message):
            cache.attend(**({"query": normal(24)} | options))


# ---- as an object --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_are_apart(dtype, copied):
    cache = filled(30, dtype, capacity=50, num_sink_tokens=1)
    other = copied(cache)
    assert repr(other) == repr(cache)
    np.testing.assert_array_equal(other.attend(normal(24)), cache.attend(normal(24)))
    other.append(normal(9, 24, seed=9), normal(9, 12))
    other.evict([0, 1])
    assert (len(other), len(cache)) == (37, 30)
    np.testing.assert_array_equal(
        cache.keys, stored(normal(30, 24, seed=1), dtype, 2).astype(np.float32)
    )


def test_properties_and_repr():
    cache = filled(7, "int8", window=9, num_sink_tokens=1, capacity=30)
    assert (cache.dim, cache.dim_v, cache.num_heads, cache.dtype) == (24, 12, 2, "int8")
    assert (cache.capacity, cache.window, cache.num_sink_tokens) == (30, 9, 1)
    assert len(cache) == 7
    assert cache.nbytes == 7 * (24 + 12 + 4 * 4)
    assert cache.path is None
    assert repr(cache) == (
        "<KVCache(dim=24, dim_v=12, capacity=30, dtype='int8', num_heads=2, window=9, "
        "num_sink_tokens=1) of 7 rows>"
    )


CHILD = """
import multiprocessing, sys
import numpy as np
from ruvector import _kernels
from ruvector.stream import KVCache

METHOD, BACKEND = sys.argv[1], (sys.argv[2], sys.argv[3] or None)

def child(cache, query, queue):
    _kernels.select(*BACKEND)
    cache.append(query, query[:12])
    queue.put((len(cache), cache.attend(query)))

if __name__ == "__main__":
    _kernels.select(*BACKEND)
    rng = np.random.default_rng(0)
    cache = KVCache(24, 12, dtype="int8", num_heads=2)
    cache.append(rng.standard_normal((9000, 24)), rng.standard_normal((9000, 12)))
    query = rng.standard_normal(24).astype(np.float32)
    cache.attend(query)
    context = multiprocessing.get_context(METHOD)
    queue = context.Queue()
    process = context.Process(target=child, args=(cache, query, queue))
    process.start()
    count, out = queue.get(timeout=60)
    process.join(timeout=60)
    assert process.exitcode == 0 and count == 9001 and len(cache) == 9000
    cache.append(query, query[:12])
    assert np.allclose(out, cache.attend(query), rtol=1e-5, atol=1e-6)
    print("same")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes(backend, method, tmp_path):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    program = tmp_path / "program.py"
    program.write_text(CHILD)
    done = isolated.python(str(program), method, backend[0], backend[1] or "")
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(backend, dtype):
    if backend[0] != "native":
        pytest.skip("BLAS may sum in another order")
    cache = filled(9000, dtype, dim=128, dim_v=128)
    for query in (normal(128), normal(40, 128)):
        with ruvector.num_threads(1):
            one = cache.attend(query)
        with ruvector.num_threads(3):
            np.testing.assert_array_equal(cache.attend(query), one)

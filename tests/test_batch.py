"""Many queries, each over a memory of its own, against the classes one by one."""

from __future__ import annotations

import asyncio
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from batch_cases import CONFIGS, DIM, PACKED, TYPES, make, memories, type_of
from isolated import output, python
from numpy.testing import assert_allclose, assert_array_equal

import ruvector
from ruvector import DimensionMismatchError, InvalidConfigError, _kernels, _mapped
from ruvector._ragged import checked_batch
from ruvector.batch import parallel_attention_compute, parallel_attention_compute_async

LENGTHS = [1, 2, 3, 7, 16, 17, 33, 40, 5, 1]


def one_by_one(attention, queries, keys, values):
    return [attention.compute(*one) for one in zip(queries, keys, values, strict=True)]


def assert_all_close(actual, desired):
    assert len(actual) == len(desired)
    for a, b in zip(actual, desired, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert_allclose(a, b, rtol=2e-6, atol=1e-6)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", CONFIGS)
class TestEveryMechanism:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_equals_the_class(self, name, workers):
        arrays = memories(LENGTHS)
        outputs = parallel_attention_compute(name, *arrays, workers, **CONFIGS[name])
        assert_all_close(outputs, one_by_one(make(name), *arrays))

    def test_async_equals_the_class(self, name):
        arrays = memories(LENGTHS)
        call = parallel_attention_compute_async(name, *arrays, 2, **CONFIGS[name])
        assert_all_close(asyncio.run(call), one_by_one(make(name), *arrays))

    def test_an_attention_instead_of_a_name(self, name):
        attention, arrays = make(name), memories(LENGTHS)
        outputs = parallel_attention_compute(attention, *arrays)
        assert_all_close(outputs, one_by_one(attention, *arrays))

    def test_an_empty_memory_is_one_that_is_hidden(self, name):
        queries, keys, values = memories([4, 0, 3, 0])
        outputs = parallel_attention_compute(name, queries, keys, values, **CONFIGS[name])
        hidden = make(name).compute(queries[1], keys[0], values[0], mask=[False] * 4)
        assert_allclose(outputs[1], hidden, atol=1e-7)
        assert (outputs[3].shape, outputs[3].dtype) == (hidden.shape, np.float32)
        assert_all_close(
            outputs[::2], one_by_one(make(name), queries[::2], keys[::2], values[::2])
        )

    def test_threads_of_an_executor(self, name):
        arrays = memories(LENGTHS)
        with ThreadPoolExecutor(2) as pool:
            outputs = parallel_attention_compute(
                name, *arrays, 3, executor=pool, **CONFIGS[name]
            )
        assert_all_close(outputs, one_by_one(make(name), *arrays))


@pytest.mark.usefixtures("backend")
class TestShapesAndTypes:
    @pytest.mark.parametrize("name", [*PACKED, "hyperbolic", "linear"])
    def test_several_rows_a_query(self, name):
        _, keys, values = memories([9, 4, 1, 12])
        rng = np.random.default_rng(2)
        queries = [
            rng.standard_normal((m, DIM)).astype(np.float32) if m else keys[1][0]
            for m in (3, 0, 1, 12)
        ]
        outputs = parallel_attention_compute(name, queries, keys, values, **CONFIGS[name])
        assert [out.shape for out in outputs] == [(3, DIM), (DIM,), (1, DIM), (12, DIM)]
        assert_all_close(outputs, one_by_one(make(name), queries, keys, values))

    @pytest.mark.parametrize("name", PACKED)
    def test_no_rows(self, name):
        _, keys, values = memories([3, 4])
        queries = [np.zeros((0, DIM), np.float32), keys[1][:2]]
        outputs = parallel_attention_compute(name, queries, keys, values, **CONFIGS[name])
        assert outputs[0].shape == (0, DIM)
        assert_all_close(outputs[1:], one_by_one(make(name), queries[1:], keys[1:], values[1:]))

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("name", [*PACKED, "local-global"])
    def test_types(self, name, dtype):
        dtype = type_of(dtype)
        arrays = memories(LENGTHS, dtype=dtype)
        outputs = parallel_attention_compute(name, *arrays, **CONFIGS[name])
        for out, expected in zip(outputs, one_by_one(make(name), *arrays), strict=True):
            assert out.dtype == dtype
            tolerance = 1e-13 if dtype == np.float64 else 1e-2
            assert_allclose(
                out.astype(np.float64), expected.astype(np.float64), tolerance, tolerance
            )

    @pytest.mark.parametrize("name", PACKED)
    def test_types_that_differ_and_widths_that_differ(self, name):
        queries, keys, values = memories(LENGTHS)
        mixed = [q.astype(np.float64) if i % 2 else q for i, q in enumerate(queries)]
        assert_all_close(
            parallel_attention_compute(name, mixed, keys, values, **CONFIGS[name]),
            one_by_one(make(name), mixed, keys, values),
        )
        narrow = [v[:, :2] if i % 2 else v for i, v in enumerate(values)]
        outputs = parallel_attention_compute(name, queries, keys, narrow, **CONFIGS[name])
        assert [len(out) for out in outputs] == [8, 2] * 5
        assert_all_close(outputs, one_by_one(make(name), queries, keys, narrow))

    @pytest.mark.parametrize("name", PACKED)
    def test_strides_and_read_only(self, name):
        queries, keys, values = memories(LENGTHS)
        expected = one_by_one(make(name), queries, keys, values)
        strided = [np.repeat(k, 2, axis=0)[::2] for k in keys]
        turned = [np.asfortranarray(v) for v in values]
        for x in (*strided, *turned):
            x.flags.writeable = False
        outputs = parallel_attention_compute(name, queries, strided, turned, **CONFIGS[name])
        assert_all_close(outputs, expected)

    def test_lists_of_numbers(self):
        keys = [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0]], []]
        outputs = parallel_attention_compute(
            "dot-product", [[1, 0], [0, 1], [1, 1]], keys, keys
        )
        assert_allclose(outputs[1], [1, 1])
        assert_array_equal(outputs[2], [0, 0])

    def test_no_queries(self):
        for name in CONFIGS:
            assert parallel_attention_compute(name, [], [], [], **CONFIGS[name]) == []
            call = parallel_attention_compute_async(name, [], [], [], **CONFIGS[name])
            assert asyncio.run(call) == []

    @pytest.mark.parametrize("name", PACKED)
    def test_threads_do_not_change_a_bit(self, name, backend):
        arrays = memories(np.random.default_rng(1).integers(0, 300, 200), dim=32)
        results = []
        for threads in (1, 2, 5):
            fields = {**CONFIGS[name], "dim": 32}
            results.append(parallel_attention_compute(name, *arrays, threads, **fields))
        for others in results[1:]:
            for a, b in zip(results[0], others, strict=True):
                if backend[0] == "native":
                    assert_array_equal(a, b)
                assert_allclose(a, b, atol=1e-6)

    def test_nan_stays_in_its_row(self):
        queries, keys, values = memories([5, 6, 7])
        keys[1][2, 0] = np.nan
        outputs = parallel_attention_compute("dot-product", queries, keys, values)
        assert [bool(np.isnan(out).any()) for out in outputs] == [False, True, False]


@pytest.mark.usefixtures("backend")
class TestPlain:
    """What needs no further check is found out by the kernel."""

    def test_what_is(self):
        queries, keys, values = memories([3, 0, 5])
        narrow = [v[:, :2].copy() for v in values]
        for given in (keys, values), (keys, narrow):
            assert _kernels.ragged.plain(list(queries), *given, DIM)

    @pytest.mark.parametrize(
        "change",
        [
            lambda q, k, v: (q[:1], k, v),
            lambda q, k, v: (q, k[:1], v),
            lambda q, k, v: (q, k, v[:1]),
            lambda q, k, v: ([], [], []),
            lambda q, k, v: ([q[0], q[1].tolist()], k, v),
            lambda q, k, v: ([q[0], q[1][:3]], k, v),
            lambda q, k, v: ([q[0], q[1][np.newaxis]], k, v),
            lambda q, k, v: ([q[0], q[1].astype(np.float64)], k, v),
            lambda q, k, v: (q, [k[0], k[1][::2]], v),
            lambda q, k, v: (q, [k[0], k[1][:, :3].copy()], v),
            lambda q, k, v: (q, [k[0], k[1][:3]], v),
            lambda q, k, v: (q, [k[0], k[1].astype(">f4")], v),
            lambda q, k, v: (q, [k[0], np.asfortranarray(k[1])], v),
            lambda q, k, v: (q, [k[0], k[1].view(np.memmap)], v),
            lambda q, k, v: (q, k, [v[0], v[1][:, 0].copy()]),
            lambda q, k, v: (q, k, [v[0], v[1][:, :2].copy()]),
            lambda q, k, v: (q, k, [v[0], None]),
        ],
    )
    def test_what_is_not(self, change):
        queries, keys, values = memories([3, 5])
        assert not _kernels.ragged.plain(*change(list(queries), keys, values), DIM)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda q, k, v: (q, k[1:], v), "keys must hold 3 memories, one per query, got 2"),
            (
                lambda q, k, v: (q, k, v[:1]),
                "values must hold 3 memories, one per q",
            ),
            (
                lambda q, k, v: ([*q[:2], q[2][:5]], k, v),
                r"queries\[2\] must have shape \(8,\) or \(m, 8\), got \(5,\)",
            ),
            (
                lambda q, k, v: (q, [k[0], k[1][:, :3], k[2]], v),
                r"keys\[1\] must have shape \(n, 8\), got \(3, 3\)",
            ),
            (
                lambda q, k, v: (q, k, [v[0], v[0], v[2]]),
                r"values\[1\] must have shape \(3, dim_v\), one vector per key, got \(2, 8\)",
            ),
        ],
    )
    def test_shapes(self, change, message):
        arrays = change(*memories([2, 3, 4]))
        with pytest.raises(DimensionMismatchError, match=message):
            parallel_attention_compute("dot-product", *arrays)
        with pytest.raises(DimensionMismatchError, match=message):
            asyncio.run(parallel_attention_compute_async("hyperbolic", *arrays))

    def test_configuration(self):
        arrays = memories([2])
        with pytest.raises(InvalidConfigError, match="attention must be 'dot-product' or"):
            parallel_attention_compute("nonsense", *arrays)
        with pytest.raises(InvalidConfigError, match="must not come with its fields"):
            parallel_attention_compute(make("flash"), *arrays, causal=True)
        with pytest.raises(InvalidConfigError, match="num_workers must be an integer"):
            parallel_attention_compute("flash", *arrays, 0)
        with pytest.raises(DimensionMismatchError, match="divides into 3 heads"):
            parallel_attention_compute("multi-head", np.ones((1, 9)), np.ones((1, 2, 9)),
                                       np.ones((1, 2, 8)), num_heads=3)  # fmt: skip

    def test_types(self):
        queries, keys, values = memories([2, 3])
        with pytest.raises(TypeError, match=r"keys\[1\] must hold real numbers"):
            parallel_attention_compute(
                "flash", queries, [keys[0], keys[1].astype(complex)], values
            )
        with pytest.raises(TypeError, match="keys must be an array or a sequence, got gener"):
            parallel_attention_compute("flash", queries, (k for k in keys), values)

    @pytest.mark.parametrize("name", ["hyperbolic", "graph-rope"])
    def test_an_error_in_a_worker_leaves_no_thread(self, name):
        before = threading.active_count()
        attention = ruvector.GraphRoPEAttention.simple(DIM, 16)
        with pytest.raises(InvalidConfigError, match="keys must be at most 16"):
            parallel_attention_compute(attention, *memories([3] * 20 + [17] + [3] * 20), 2)
        assert threading.active_count() == before


class Recorder(ruvector.DotProductAttention):
    """An attention that is no longer plain, and tells who computes with how many threads."""

    def __init__(self):
        super().__init__(DIM)
        self.seen = []

    def compute(self, *arrays, **keywords):
        self.seen.append((threading.current_thread().name, ruvector.get_num_threads()))
        return super().compute(*arrays, **keywords)


class TestWorkers:
    def test_one_kernel_thread_each(self):
        recorder = Recorder()
        with ruvector.num_threads(2):
            parallel_attention_compute(recorder, *memories([3] * 40), 2)
        names, threads = zip(*recorder.seen, strict=True)
        assert set(threads) == {1}
        assert len(set(names)) <= 2
        assert threading.current_thread().name not in names

    def test_one_query_has_all_threads(self):
        recorder = Recorder()
        parallel_attention_compute(recorder, *memories([3]), 2)
        assert recorder.seen == [(threading.current_thread().name, 2)]

    def test_pieces_have_about_the_same_work(self):
        batch = checked_batch(make("dot-product"), *memories([500] * 4 + [1] * 60))
        pieces = batch.pieces(4)
        assert sum(map(len, pieces)) == 64
        assert len(pieces) == 4
        work = [sum(len(k) + 64 for k in piece.keys) for piece in pieces]
        assert max(work) < 2 * min(work)

    def test_maps_of_files_travel_by_name(self, tmp_path):
        big = np.random.default_rng(0).standard_normal((10_000, DIM)).astype(np.float32)
        np.save(tmp_path / "keys.npy", big)
        keys = np.load(tmp_path / "keys.npy", mmap_mode="r")
        parts = [keys[:4000], keys[4000:], keys[::-3]]
        batch = checked_batch(make("dot-product"), big[:3], parts, parts)
        sent = pickle.dumps(batch)
        assert len(sent) < 3000
        received = pickle.loads(sent)
        for a, b in zip(received.keys, parts, strict=True):
            assert_array_equal(a, b)
            assert not a.flags.writeable
        assert_all_close(received(), batch())

    def test_what_is_no_map_travels_whole(self, tmp_path):
        np.save(tmp_path / "x.npy", np.arange(6.0))
        lazily = np.load(tmp_path / "x.npy", mmap_mode="c")
        for x in (np.arange(3), lazily, lazily + 1, 5, None):
            assert _mapped.opened(_mapped.reference(x)) is x

    @pytest.mark.parametrize("method", ["spawn", "fork"])
    def test_processes(self, method, tmp_path):
        np.save(tmp_path / "keys.npy", memories([30])[1][0])
        # Forking a process with threads is what this tests, so Python's warning is silenced.
        code = (
            "import sys, warnings, numpy as np\n"
            "from concurrent.futures import ProcessPoolExecutor\n"
            "from multiprocessing import get_context\n"
            "from ruvector.batch import parallel_attention_compute\n"
            "warnings.simplefilter('ignore', DeprecationWarning)\n"
            "if __name__ == '__main__':\n"
            "    keys = np.load(sys.argv[1], mmap_mode='r')\n"
            "    x = np.ones((200, 64), np.float32)\n"
            "    parts, queries = [keys[:10], keys[10:], keys[5:25]], np.ones((3, 8), 'f4')\n"
            "    parallel_attention_compute('dot-product', x[:2], [x, x], [x, x], 2)\n"
            "    with ProcessPoolExecutor(2, get_context(sys.argv[2])) as pool:\n"
            "        a = parallel_attention_compute('linear', queries, parts, parts,\n"
            "                                       2, executor=pool, num_features=8)\n"
            "    b = parallel_attention_compute('linear', queries, parts, parts, 1,\n"
            "                                   num_features=8)\n"
            "    print(max(abs(x - y).max() for x, y in zip(a, b)) < 1e-6)\n"
        )
        script = tmp_path / "script.py"
        script.write_text(code)
        done = python(str(script), str(tmp_path / "keys.npy"), method)
        assert done.stdout.strip() == "True", done.stderr


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, numpy, ruvector.batch, ruvector.sharding\n"
        "x = numpy.ones((3, 2, 4), 'f4')\n"
        "ruvector.batch.parallel_attention_compute('flash', x[:, 0], x, x)\n"
        "late = {'asyncio', 'concurrent.futures', 'dask', 'multiprocessing'}\n"
        "print(*(late & {*sys.modules}))"
    )
    assert output(code) == ""


@pytest.mark.usefixtures("backend")
class TestAsync:
    def test_64_at_once(self):
        arrays = [memories(LENGTHS, seed=seed) for seed in range(64)]
        names = [list(CONFIGS)[seed % len(CONFIGS)] for seed in range(64)]
        before = threading.active_count()

        async def all_of_them():
            return await asyncio.gather(
                *(
                    parallel_attention_compute_async(name, *one, 2, **CONFIGS[name])
                    for name, one in zip(names, arrays, strict=True)
                )
            )

        for name, one, outputs in zip(names, arrays, asyncio.run(all_of_them()), strict=True):
            assert_all_close(outputs, one_by_one(make(name), *one))
        assert threading.active_count() == before

    def test_the_loop_goes_on(self):
        ticks = 0

        async def both():
            nonlocal ticks
            call = asyncio.ensure_future(
                parallel_attention_compute_async(Slow(), *memories([3] * 10), 1)
            )
            while not call.done():
                ticks += 1
                await asyncio.sleep(0.001)
            return await call

        assert len(asyncio.run(both())) == 10
        assert ticks > 3

    def test_cancellation_drops_what_has_not_begun(self):
        slow = Slow()

        async def cancelled(executor):
            call = asyncio.ensure_future(
                parallel_attention_compute_async(
                    slow, *memories([3] * 12), 12, executor=executor
                )
            )
            while not slow.computed:
                await asyncio.sleep(0.001)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            # Nothing runs any more once the cancellation came through.
            computed = slow.computed
            await asyncio.sleep(0.05)
            assert slow.computed == computed
            assert computed < 12

        with ThreadPoolExecutor(1) as pool:
            asyncio.run(cancelled(pool))


class Slow(ruvector.DotProductAttention):
    """An attention that takes its time."""

    def __init__(self):
        super().__init__(DIM)
        self.computed = 0

    def compute(self, *arrays, **keywords):
        threading.Event().wait(0.01)
        self.computed += 1
        return super().compute(*arrays, **keywords)


@pytest.mark.slow
def test_processes_of_this_one(tmp_path):
    arrays = memories(LENGTHS)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for name, fields in CONFIGS.items():
            outputs = parallel_attention_compute(name, *arrays, 2, executor=pool, **fields)
            assert_all_close(outputs, one_by_one(make(name), *arrays))

"""The private parts of the NumPy kernels: storage types, visible keys, BLAS threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from ruvector._kernels.fallback import _storage, _threads, _tiles
from ruvector._kernels.fallback._ranking import largest
from ruvector._kernels.fallback._visible import VisibleKeys, is_positional
from ruvector._kernels.spec import AttentionSpec


class TestStorage:
    def test_every_float16(self):
        halves = np.arange(65_536, dtype=np.uint16).view(np.float16)
        wide = _storage.widen(halves)
        assert wide.dtype == np.float32
        np.testing.assert_array_equal(wide, halves.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(halves))

    def test_every_bfloat16_there_and_back(self):
        bits = np.arange(65_536, dtype=np.uint16)
        wide = _storage.widen(bits)
        again = np.empty_like(bits)
        _storage.store(again, wide)
        nan = np.isnan(wide)
        np.testing.assert_array_equal(again[~nan], bits[~nan])
        assert np.isnan(_storage.widen(again)[nan]).all()

    def test_bfloat16_rounds_to_nearest_even(self):
        below, above = np.float32(1), np.float32(1 + 2**-7)
        middle = np.float32(1 + 2**-8)
        cases = {
            middle: below,
            np.nextafter(middle, np.float32(0)): below,
            np.nextafter(middle, np.float32(2)): above,
            np.float32(1 + 3 * 2**-8): np.float32(1 + 2 * 2**-7),
            np.finfo(np.float32).max: np.float32(np.inf),
            np.float32(-np.inf): np.float32(-np.inf),
        }
        stored = np.empty(len(cases), np.uint16)
        _storage.store(stored, np.array(list(cases)))
        np.testing.assert_array_equal(_storage.widen(stored), list(cases.values()))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_computed_types_are_not_copied(self, dtype):
        array = np.ones((2, 3), dtype)
        assert _storage.widen(array) is array or _storage.widen(array).base is array
        assert _storage.ready(array) is array

    def test_what_blas_cannot_walk_is_copied(self):
        rows = np.arange(24, dtype=np.float32).reshape(4, 6)
        for array in (rows[::-1], np.broadcast_to(rows[:1], (4, 6)), rows.astype(np.float16)):
            assert _storage.needs_copy(array)
            ready = _storage.ready(array)
            assert not _storage.needs_copy(ready)
            np.testing.assert_array_equal(ready, array)
        assert not _storage.needs_copy(rows[::2, 1:4])


@st.composite
def _visible(draw):
    num_keys = draw(st.integers(1, 40))
    positions = draw(st.lists(st.integers(-10, 50), min_size=1, max_size=8))
    spec = AttentionSpec(
        scale=1.0,
        causal=draw(st.booleans()),
        left=draw(st.integers(-1, 12)),
        right=draw(st.integers(-1, 12)),
        num_sinks=draw(st.integers(0, 6)),
        symmetric=draw(st.booleans()),
    )
    return VisibleKeys(np.array(positions, np.int64), spec, num_keys), num_keys, spec


class TestVisibleKeys:
    @given(_visible())
    @settings(max_examples=300)
    def test_ranges_hold_every_visible_key_in_order(self, case):
        visible, num_keys, spec = case
        seen = visible.mask(0, num_keys)
        if not is_positional(spec):
            assert seen.all()
        ranges = visible.ranges()
        flat = [end for pair in ranges for end in pair]
        assert flat == sorted(set(flat))
        covered = {j for start, stop in ranges for j in range(start, stop)}
        assert set(np.flatnonzero(seen.any(axis=0))) <= covered <= set(range(num_keys))

    @given(_visible(), st.data())
    @settings(max_examples=300)
    def test_what_is_not_doubtful_is_seen_by_every_row(self, case, data):
        visible, num_keys, _ = case
        start = data.draw(st.integers(0, num_keys - 1))
        stop = data.draw(st.integers(start + 1, num_keys))
        doubtful = {j for a, b in visible.doubtful(start, stop) for j in range(a, b)}
        assert doubtful <= set(range(start, stop))
        certain = sorted(set(range(start, stop)) - doubtful)
        assert visible.mask(0, num_keys)[:, certain].all()

    def test_a_windowed_block_touches_few_keys(self):
        spec = AttentionSpec(scale=1.0, left=10, right=10, num_sinks=2)
        visible = VisibleKeys(np.arange(1000, 1064), spec, 100_000)
        assert visible.ranges() == [(0, 2), (990, 1074)]

    def test_only_the_diagonal_of_a_causal_block_is_masked(self):
        spec = AttentionSpec(scale=1.0, causal=True)
        visible = VisibleKeys(np.arange(1000, 1064), spec, 100_000)
        assert visible.ranges() == [(0, 1064)]
        assert visible.doubtful(0, 500) == []
        assert visible.doubtful(500, 1064) == [(1001, 1064)]


class TestCut:
    @given(
        st.tuples(*[st.integers(1, 10_000)] * 2),
        st.integers(1, 40),
        st.integers(1, 300),
        st.sampled_from([1, 64, 256, 5000]),
        st.sampled_from([np.float16, np.float32]),
        st.integers(-1, 600),
    )
    @settings(max_examples=200)
    def test_no_tile_takes_more_than_its_share(
        self, lengths, key_heads, group, dim, dtype, left
    ):
        def shaped(heads, length):
            return np.broadcast_to(np.ones(dim, dtype), (3, heads, length, dim))

        query, key = shaped(key_heads * group, lengths[0]), shaped(key_heads, lengths[1])
        spec = AttentionSpec(scale=1.0, left=left, causal=True)
        cut = _tiles._cut(query, key, key, dim, spec)
        assert min(cut) >= 1
        lines = cut.batch * cut.heads * group * cut.rows
        assert lines * cut.keys <= max(_tiles._SCORES, lines)
        assert lines * dim <= 2 * max(_tiles._SCORES, group * dim)


def _blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


class _OwnCount(threading.local):
    """A BLAS library under OpenMP: each thread has a thread count of its own."""

    threading_layer = "openmp"
    count = 4

    def get_num_threads(self):
        return self.count

    def set_num_threads(self, count):
        self.count = count


def test_blas_with_a_count_for_each_thread(monkeypatch):
    library = _OwnCount()
    monkeypatch.setattr(_threads, "_libraries", _threads._Libraries([], [library]))
    counts = []

    def work(threads):
        with _threads.blas_threads(threads, 1 << 30):
            counts.append(library.count)
            if threads == 2:
                other = threading.Thread(target=work, args=(1,))
                other.start()
                other.join()
                counts.append(library.count)
        counts.append(library.count)

    work(2)
    assert counts == [2, 1, 4, 2, 4]


@pytest.mark.skipif(max(_blas_threads(), default=1) < 2, reason="BLAS runs single-threaded")
class TestBlasThreads:
    LARGE = 1 << 30

    def test_bounded_inside_and_restored_outside(self):
        before = _blas_threads()
        with _threads.blas_threads(1, self.LARGE):
            assert set(_blas_threads()) == {1}
        assert _blas_threads() == before

    def test_never_raised(self):
        with threadpool_limits(1, user_api="blas"), _threads.blas_threads(8, self.LARGE):
            assert set(_blas_threads()) == {1}

    def test_small_work_is_left_alone(self):
        before = _blas_threads()
        with _threads.blas_threads(1, 100):
            assert _blas_threads() == before

    def test_restored_after_an_exception(self):
        before = _blas_threads()
        with pytest.raises(ZeroDivisionError), _threads.blas_threads(1, self.LARGE):
            raise ZeroDivisionError
        assert _blas_threads() == before

    def test_the_smallest_of_overlapping_limits_holds(self):
        before = _blas_threads()
        inside, leave = threading.Event(), threading.Event()

        def other():
            with _threads.blas_threads(1, self.LARGE):
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with _threads.blas_threads(2, self.LARGE):
            thread.start()
            inside.wait(10)
            assert set(_blas_threads()) == {1}
            leave.set()
            thread.join()
            assert _blas_threads() == [min(2, count) for count in before]
        assert _blas_threads() == before

    def test_many_at_once(self):
        before = _blas_threads()

        def work(threads):
            for _ in range(50):
                with _threads.blas_threads(threads, self.LARGE):
                    pass

        workers = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(16)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert _blas_threads() == before


@pytest.mark.parametrize("k", [1, 3, 20, 39, 40, 60])
@pytest.mark.parametrize("hidden", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("levels", [2, 1000])
def test_largest_are_those_of_a_stable_sort(k, hidden, levels):
    rng = np.random.default_rng([k, levels])
    scores = rng.integers(0, levels, (2, 30, 40)).astype(np.float32)
    scores[rng.random(scores.shape) < hidden * rng.integers(0, 2, (2, 30, 1))] = -np.inf
    columns = largest(scores, k)
    expected = np.argsort(-scores, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(columns, expected)

"""Batches one after another: streams worked on ahead, back-pressure, ends of all kinds."""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import numpy as np
import pytest
from batch_cases import CONFIGS, DIM, make, memories
from numpy.testing import assert_allclose

import ruvector
from ruvector import DimensionMismatchError, InvalidConfigError
from ruvector.batch import BatchProcessor


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    gc.collect()
    assert threading.active_count() == before


def batches(count, lengths=(3, 1, 7, 4, 9)):
    return [memories(lengths, seed=seed) for seed in range(count)]


def expected(name, given):
    attention = make(name)
    return [[attention.compute(*one) for one in zip(*arrays, strict=True)] for arrays in given]


def assert_same(actual, desired):
    assert [len(outputs) for outputs in actual] == [len(outputs) for outputs in desired]
    for a, b in zip(itertools.chain(*actual), itertools.chain(*desired), strict=True):
        assert_allclose(a, b, rtol=2e-6, atol=1e-6)


async def collect(iterator):
    return [outputs async for outputs in iterator]


async def asynchronously(items):
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
class TestResults:
    def test_batches_and_streams(self, name, prefetch):
        given = batches(3)
        with BatchProcessor(
            2, 2, prefetch=prefetch, attention=name, **CONFIGS[name]
        ) as processor:
            assert_same([processor.process_batch(*b) for b in given], expected(name, given))
            assert_same(list(processor.process_stream(iter(given))), expected(name, given))
            assert processor.get_throughput() > 0

    def test_asynchronous_batches_and_streams(self, name, prefetch):
        given = batches(3)
        processor = BatchProcessor(2, 2, prefetch=prefetch, attention=name, **CONFIGS[name])

        async def run():
            one = await processor.process_batch_async(*given[0])
            streams = [
                await collect(processor.process_stream_async(source))
                for source in (given, iter(given), asynchronously(given))
            ]
            return [one], streams

        one, streams = asyncio.run(run())
        assert_same(one, expected(name, given[:1]))
        for outputs in streams:
            assert_same(outputs, expected(name, given))


class TestProcessor:
    def test_properties(self):
        processor = BatchProcessor(8, attention="multi-head", num_heads=2)
        assert processor.batch_size == 8
        assert processor.prefetch
        assert processor.num_workers == ruvector.get_num_threads()
        assert processor.attention == "multi-head"
        assert processor.get_throughput() == 0
        assert "batch_size=8" in repr(processor)
        assert "num_heads=2" in repr(processor)
        processor.process_batch(*memories([2]))
        assert processor.attention == ruvector.MultiHeadAttention(DIM, 2)

    def test_errors(self):
        with pytest.raises(InvalidConfigError, match="batch_size must be an integer of at le"):
            BatchProcessor(0)
        with pytest.raises(InvalidConfigError, match="num_workers must be an integer of at l"):
            BatchProcessor(1, 0)
        with pytest.raises(InvalidConfigError, match="prefetch must be True or False"):
            BatchProcessor(1, prefetch=1)
        with pytest.raises(InvalidConfigError, match="attention must be 'dot-product' or"):
            BatchProcessor(1, attention="nonsense")
        with pytest.raises(InvalidConfigError, match="must not come with its fields"):
            BatchProcessor(1, attention=make("flash"), causal=True)
        with pytest.raises(DimensionMismatchError, match="keys must hold 1 memories"):
            BatchProcessor(1).process_batch(np.ones((1, 4)), [], [])

    def test_no_more_than_batch_size_in_work(self):
        counting = Counting(0)
        with ThreadPoolExecutor(8) as pool:
            BatchProcessor(3, 8, attention=counting, executor=pool).process_batch(
                *memories([2] * 20)
            )
        assert counting.most <= 3
        assert counting.computed == 20

    def test_pool_of_a_context_is_kept(self):
        counting = Counting(0)
        with BatchProcessor(4, 2, attention=counting) as processor:
            for batch in batches(5):
                processor.process_batch(*batch)
            assert len(counting.threads) <= 2
        before = counting.computed
        assert len(processor.process_batch(*memories([1, 2]))) == 2
        assert counting.computed == before + 2

    def test_throughput_counts_time_in_work(self):
        processor = BatchProcessor(4, 1, attention=Counting(0.01))
        processor.process_batch(*memories([2] * 5))
        time.sleep(0.2)
        assert 5 / 0.2 < processor.get_throughput() <= 5 / 0.05

    def test_a_batch_that_fails_does_not_count(self):
        processor = BatchProcessor(4, 1, attention=Counting(0, fail=1))
        with pytest.raises(RuntimeError, match="as it was told to"):
            processor.process_batch(*memories([2] * 5))
        assert processor.get_throughput() == 0


class TestBackPressure:
    def test_no_further_than_two_batches_ahead(self):
        read = 0

        def source():
            nonlocal read
            for batch in batches(20):
                read += 1
                yield batch

        stream = BatchProcessor(8).process_stream(source())
        for taken in range(1, 6):
            next(stream)
            time.sleep(0.05)
            # One with the caller, one computed, one read, one on its way.
            assert read <= taken + 3
        assert read > 6
        stream.close()
        assert read <= 9

    def test_asynchronous(self):
        read = 0

        async def source():
            nonlocal read
            for batch in batches(20):
                read += 1
                yield batch

        async def run():
            async with aclosing(BatchProcessor(8).process_stream_async(source())) as stream:
                for taken in range(1, 6):
                    await anext(stream)
                    await asyncio.sleep(0.05)
                    assert read <= taken + 3
            assert read <= 9

        asyncio.run(run())

    def test_works_ahead_of_the_caller(self):
        counting = Counting(0)
        stream = BatchProcessor(8, 1, attention=counting).process_stream(batches(3))
        next(stream)
        deadline = time.monotonic() + 10
        while counting.computed < 10 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert counting.computed == 10
        stream.close()

    def test_does_not_work_ahead_without_prefetch(self):
        counting = Counting(0)
        processor = BatchProcessor(8, 1, prefetch=False, attention=counting)
        stream = processor.process_stream(batches(3))
        next(stream)
        time.sleep(0.05)
        assert counting.computed == 5
        stream.close()

    def test_a_stream_that_is_never_begun_starts_nothing(self):
        BatchProcessor(8).process_stream(batches(3))


class TestEnds:
    @pytest.mark.parametrize("prefetch", [True, False])
    def test_error_of_the_source_comes_in_its_place(self, prefetch):
        def source():
            yield from batches(2)
            raise OSError("no more")

        taken = []
        with pytest.raises(OSError, match="no more"):
            taken.extend(BatchProcessor(8, prefetch=prefetch).process_stream(source()))
        assert len(taken) == 2

        async def run():
            processor = BatchProcessor(8, prefetch=prefetch)
            async for outputs in processor.process_stream_async(source()):
                taken.append(outputs)

        with pytest.raises(OSError, match="no more"):
            asyncio.run(run())
        assert len(taken) == 4

    @pytest.mark.parametrize("prefetch", [True, False])
    def test_error_of_a_batch_comes_in_its_place_and_closes_the_source(self, prefetch):
        closed = []

        def source():
            try:
                yield memories([2])
                yield memories([3])[0], [], []
                yield memories([2])
                yield memories([2])
            finally:
                closed.append(True)

        stream = BatchProcessor(8, prefetch=prefetch).process_stream(source())
        assert len(next(stream)) == 1
        with pytest.raises(DimensionMismatchError, match="keys must hold 1 memories"):
            next(stream)
        assert closed == [True]

    @pytest.mark.parametrize("prefetch", [True, False])
    def test_closing_closes_the_source(self, prefetch):
        closed = []

        def source():
            try:
                while True:
                    yield memories([2])
            finally:
                closed.append(True)

        stream = BatchProcessor(8, prefetch=prefetch).process_stream(source())
        next(stream)
        stream.close()
        assert closed == [True]

    def test_cancelling_a_stream(self):
        counting = Counting(0.01)

        async def run():
            task = asyncio.ensure_future(
                collect(
                    BatchProcessor(8, 1, attention=counting).process_stream_async(batches(50))
                )
            )
            while counting.computed < 7:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            computed = counting.computed
            await asyncio.sleep(0.1)
            assert counting.computed == computed < 50 * 5

        asyncio.run(run())

    def test_the_number_of_threads_of_the_caller_counts_ahead_as_well(self):
        counting = Counting(0)
        with ruvector.num_threads(1):
            list(BatchProcessor(8, attention=counting).process_stream(batches(2)))
        assert counting.most == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dot-product", "hyperbolic"])
def test_soak(name):
    """10,000 small batches, and the memory of the process stays what it was."""
    resource = pytest.importorskip("resource")
    given = batches(10)
    factor = 1 if sys.platform == "darwin" else 1024

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * factor

    def stream(count):
        return itertools.islice(itertools.cycle(given), count)

    with BatchProcessor(4, 2, attention=name) as processor:
        for _ in processor.process_stream(stream(500)):
            pass
        gc.collect()
        before, objects = peak(), len(gc.get_objects())
        count = sum(len(outputs) for outputs in processor.process_stream(stream(10_000)))
        gc.collect()
    assert count == 50_000
    assert peak() - before < 8 << 20
    assert len(gc.get_objects()) - objects < 1000


class Counting(ruvector.DotProductAttention):
    """An attention that counts its calls, and how many there were at a time."""

    def __init__(self, seconds, fail=0):
        super().__init__(DIM)
        self._seconds, self._fail = seconds, fail
        self._lock = threading.Lock()
        self._active = self.most = self.computed = 0
        self.threads = set()

    def compute(self, *arrays, **keywords):
        with self._lock:
            self._active += 1
            self.most = max(self.most, self._active)
            self.threads.add(threading.get_ident())
        try:
            time.sleep(self._seconds)
            if self._fail and self.computed >= self._fail:
                raise RuntimeError("as it was told to")
            return super().compute(*arrays, **keywords)
        finally:
            with self._lock:
                self._active -= 1
                self.computed += 1

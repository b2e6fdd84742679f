"""Many queries, each over a memory of its own: at once, in batches, as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ._checks import flag, integer
from ._parallel import (
    Memories,
    Queries,
    check_attention,
    make_batch,
    parallel_attention_compute,
    parallel_attention_compute_async,
    run,
    run_async,
    worker_count,
)
from ._pool import ahead, ahead_async, in_steps_async
from ._ragged import Batch
from .attention import Attention

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "BatchProcessor",
    "parallel_attention_compute",
    "parallel_attention_compute_async",
]


class BatchProcessor:
    """Attention in batches: a list at a time, or a stream that is worked on ahead.

    Parameters
    ----------
    batch_size : int
        How many queries are in work at a time; longer lists are cut.
    num_workers : int, optional
        As in :func:`parallel_attention_compute`.
    prefetch : bool, default True
        Whether a stream is read and computed ahead, each by one batch, while the caller
        handles the last result.
    attention : str or Attention, default "dot-product"
        A name out of :func:`ruvector.available_mechanisms`, or an attention.
    executor : concurrent.futures.Executor, optional
        As in :func:`parallel_attention_compute`; it is not shut down.
    **config
        As in :func:`parallel_attention_compute`; a width that is not given is that of the
        first queries.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    Used as a context manager it keeps one pool of threads from batch to batch, where the
    mechanism needs one, and ends it on leaving; else every batch has its own.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.batch import BatchProcessor
    >>> rng = np.random.default_rng(0)
    >>> def batches():
    ...     for n in (10, 20, 30):
    ...         memories = rng.standard_normal((8, n, 16), dtype=np.float32)
    ...         yield memories[:, 0], memories, memories
    >>> with BatchProcessor(batch_size=4, attention="hyperbolic", curvature=0.5) as processor:
    ...     sizes = [len(outputs) for outputs in processor.process_stream(batches())]
    >>> sizes, processor.get_throughput() > 0
    ([8, 8, 8], True)
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int | None = None,
        prefetch: bool = True,
        *,
        attention: str | Attention = "dot-product",
        executor: Executor | None = None,
        **config: Any,
    ) -> None:
        self._batch_size = integer(batch_size, "batch_size", 1)
        self._num_workers = num_workers
        if num_workers is not None:
            integer(num_workers, "num_workers", 1)
        self._prefetch = flag(prefetch, "prefetch")
        check_attention(attention, config)
        self._attention = attention
        self._config = config
        self._executor = executor
        self._pool: Executor | None = None
        self._meter = _Meter()

    @property
    def batch_size(self) -> int:
        """How many queries are in work at a time."""
        return self._batch_size

    @property
    def num_workers(self) -> int:
        """How many workers there are for a batch."""
        return worker_count(self._num_workers)

    @property
    def prefetch(self) -> bool:
        """Whether a stream is worked on ahead."""
        return self._prefetch

    @property
    def attention(self) -> str | Attention:
        """What is computed: a name until the first queries gave it a width."""
        return self._attention

    def get_throughput(self) -> float:
        """Return how many queries were answered in a second of work.

        Returns
        -------
        float
            Queries over the time in which at least one batch was in work; 0 before the
            first.
        """
        return self._meter.rate()

    def process_batch(self, queries: Queries, keys: Memories, values: Memories) -> list[Any]:
        """Attend from queries, each over a memory of its own.

        Parameters
        ----------
        queries, keys, values
            As in :func:`parallel_attention_compute`.

        Returns
        -------
        list of ndarray
            The output of each query.

        Raises
        ------
        DimensionMismatchError, InvalidConfigError, TypeError
            As :func:`parallel_attention_compute`.
        """
        batch = self._checked(queries, keys, values)
        results: list[Any] = []
        with self._meter.work(len(batch)):
            for part in self._parts(batch):
                results += run(part, self.num_workers, self._executor or self._pool)
        return results

    async def process_batch_async(
        self, queries: Queries, keys: Memories, values: Memories
    ) -> list[Any]:
        """Run :meth:`process_batch` while the event loop goes on.

        Parameters
        ----------
        queries, keys, values
            As in :func:`parallel_attention_compute`.

        Returns
        -------
        list of ndarray
            The output of each query.

        Raises
        ------
        DimensionMismatchError, InvalidConfigError, TypeError
            As :func:`parallel_attention_compute`.
        """
        batch = self._checked(queries, keys, values)
        results: list[Any] = []
        with self._meter.work(len(batch)):
            for part in self._parts(batch):
                executor = self._executor or self._pool
                results += await run_async(part, self.num_workers, executor)
        return results

    def process_stream(
        self, batches: Iterable[tuple[Queries, Memories, Memories]]
    ) -> Generator[list[Any]]:
        """Attend over a stream of batches, in order.

        Parameters
        ----------
        batches : iterable of (queries, keys, values)
            As in :func:`parallel_attention_compute`. With `prefetch` it is read in a thread
            of its own, and at most one batch beyond the one in work.

        Yields
        ------
        list of ndarray
            The outputs of one batch. With `prefetch` the next one is worked on meanwhile,
            and no other: whoever takes results slowly slows the reading down.

        Raises
        ------
        Exception
            Whatever the iterable or :meth:`process_batch` raises, in its place in the order.
            When the iteration ends, in whatever way, so do its threads; end one before its
            end with ``close()``.
        """
        if not self._prefetch:
            return self._in_order(iter(batches))
        return ahead(self._in_order(ahead(iter(batches))))

    async def process_stream_async(
        self, batches: Iterable[Any] | AsyncIterable[Any]
    ) -> AsyncGenerator[list[Any]]:
        """Attend over a stream of batches, in order, while the event loop goes on.

        Parameters
        ----------
        batches : iterable or asynchronous iterable of (queries, keys, values)
            As in :meth:`process_stream`; an ordinary iterable is read in a thread.

        Yields
        ------
        list of ndarray
            The outputs of one batch.

        Raises
        ------
        Exception
            As :meth:`process_stream`. An iteration that is left before its end is ended by
            ``aclose()`` (``contextlib.aclosing``).
        """
        steps = in_steps_async(batches)
        if self._prefetch:
            steps = ahead_async(self._in_order_async(ahead_async(steps)))
        else:
            steps = self._in_order_async(steps)
        async with aclosing(steps):
            async for outputs in steps:
                yield outputs

    def close(self) -> None:
        """End the pool of threads, if there is one; the next batch has one of its own."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        """Keep one pool of threads from now on."""
        if self._executor is None and self._pool is None:
            from concurrent.futures import ThreadPoolExecutor

            # It starts no thread before it has work for one.
            self._pool = ThreadPoolExecutor(self.num_workers, "ruvector-batch")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the pool of threads."""
        self.close()

    def __repr__(self) -> str:
        """Return the call that makes such an object."""
        config = "".join(f", {name}={value!r}" for name, value in self._config.items())
        return (
            f"BatchProcessor(batch_size={self._batch_size}, num_workers={self._num_workers}, "
            f"prefetch={self._prefetch}, attention={self._attention!r}{config})"
        )

    def _checked(self, queries: Queries, keys: Memories, values: Memories) -> Batch:
        batch = make_batch(self._attention, queries, keys, values, self._config)
        if len(batch) and not isinstance(self._attention, Attention):
            self._attention, self._config = batch.attention, {}
        return batch

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for start in range(0, len(batch), self._batch_size):
            yield batch[slice(start, start + self._batch_size)]

    def _in_order(self, batches: Iterator[tuple[Any, Any, Any]]) -> Generator[list[Any]]:
        try:
            for batch in batches:
                yield self.process_batch(*batch)
        finally:
            _close(batches)

    async def _in_order_async(self, batches: Any) -> Any:
        async with aclosing(batches):
            async for batch in batches:
                yield await self.process_batch_async(*batch)


class _Meter:
    """Counts queries, and the time in which any were in work."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._queries = self._active = 0
        self._busy = self._since = 0.0

    @contextmanager
    def work(self, queries: int) -> Iterator[None]:
        with self._lock:
            if not self._active:
                self._since = time.perf_counter()
            self._active += 1
        done = 0
        try:
            yield
            done = queries
        finally:
            with self._lock:
                self._active -= 1
                self._queries += done
                if not self._active:
                    self._busy += time.perf_counter() - self._since

    def rate(self) -> float:
        with self._lock:
            busy = self._busy
            if self._active:
                busy += time.perf_counter() - self._since
            return self._queries / busy if busy else 0.0


def _close(iterator: Any) -> None:
    if hasattr(iterator, "close"):
        iterator.close()

"""Many queries, each over a memory of its own: at once, in batches, as a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike

from . import _config
from ._arrays import floating
from ._checks import flag, integer, one_of
from ._pool import ahead, ahead_async, gather, gather_async, in_steps_async, loop_submit
from ._ragged import Batch, checked_batch
from .attention import (
    Attention,
    DotProductAttention,
    DualSpaceAttention,
    EdgeFeaturedAttention,
    FlashAttention,
    GraphRoPEAttention,
    HyperbolicAttention,
    LinearAttention,
    LocalGlobalAttention,
    MoEAttention,
    MultiHeadAttention,
)
from .errors import InvalidConfigError

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "BatchProcessor",
    "parallel_attention_compute",
    "parallel_attention_compute_async",
]

_CLASSES: dict[str, Callable[..., Attention]] = {
    "dot-product": DotProductAttention,
    "multi-head": MultiHeadAttention,
    "flash": FlashAttention,
    "linear": LinearAttention,
    "moe": MoEAttention,
    "local-global": LocalGlobalAttention,
    "hyperbolic": HyperbolicAttention,
    "dual-space": DualSpaceAttention,
    "edge-featured": EdgeFeaturedAttention,
    "graph-rope": GraphRoPEAttention,
}

# The field that the width of the queries can stand for.
_WIDTHS = dict.fromkeys(_CLASSES, "dim") | {"edge-featured": "node_dim", "dual-space": None}

# Pieces for each worker: enough that none waits long for another, few enough to be cheap.
_PIECES = 4

Queries = ArrayLike | Sequence[ArrayLike]
Memories = ArrayLike | Sequence[ArrayLike]


def parallel_attention_compute(
    attention_type: str | Attention,
    queries: Queries,
    keys: Memories,
    values: Memories,
    num_workers: int | None = None,
    *,
    executor: Executor | None = None,
    **config: Any,
) -> list[Any]:
    """Attend from many queries, each over a memory of its own, in parallel.

    Dot-product, multi-head and flash attention are one call of a kernel over all memories
    where they lie: nothing is packed, padded or copied. The others run in a pool of threads,
    one kernel thread each, without the interpreter's lock.

    Parameters
    ----------
    attention_type : str or Attention
        A name out of :func:`ruvector.available_mechanisms`, or an attention.
    queries : array_like, shape (B, dim) or (B, m, dim), or sequence of B arrays
        Each query has the shape (dim,) or (m, dim).
    keys : array_like, shape (B, n, dim), or sequence of B arrays (n_i, dim)
        The memory of each query; the lengths may differ.
    values : array_like, shape (B, n, dim_v), or sequence of B arrays (n_i, dim_v)
        As many vectors as keys.
    num_workers : int, optional
        How many threads work, or how many workers of the executor are to have some work;
        by default :func:`ruvector.get_num_threads`.
    executor : concurrent.futures.Executor, optional
        Who works, one kernel thread a worker. Processes get the arrays pickled, but of maps
        of files (``np.load(path, mmap_mode="r")``) only path and offset.
    **config
        What the class of that name takes; its width (``dim``, ``node_dim``) is that of the
        queries unless given.

    Returns
    -------
    list of ndarray
        The output of each query, what ``compute`` of the class gives to rounding. A query
        whose memory is empty gets what a query that sees nothing gets: 0.

    Raises
    ------
    DimensionMismatchError
        If the numbers of queries and memories differ, or shapes do not fit each other.
    InvalidConfigError
        If the name is unknown or the configuration outside its domain.
    TypeError
        If an array does not hold real numbers.

    See Also
    --------
    BatchProcessor : The same for one batch after another.
    scaled_dot_product_attention : Packed sequences, with ``cu_seqlens_q``.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.batch import parallel_attention_compute
    >>> rng = np.random.default_rng(0)
    >>> memories = [rng.standard_normal((n, 16), dtype=np.float32) for n in (3, 50, 1000)]
    >>> queries = rng.standard_normal((3, 16), dtype=np.float32)
    >>> outputs = parallel_attention_compute("dot-product", queries, memories, memories)
    >>> [output.shape for output in outputs]
    [(16,), (16,), (16,)]
    """
    batch = _batch(attention_type, queries, keys, values, config)
    return _run(batch, _workers(num_workers), executor)


async def parallel_attention_compute_async(
    attention_type: str | Attention,
    queries: Queries,
    keys: Memories,
    values: Memories,
    num_workers: int | None = None,
    *,
    executor: Executor | None = None,
    **config: Any,
) -> list[Any]:
    """Run :func:`parallel_attention_compute` while the event loop goes on.

    Parameters
    ----------
    attention_type, queries, keys, values, num_workers, **config
        As in :func:`parallel_attention_compute`.
    executor : concurrent.futures.Executor, optional
        Who works; by default the threads of the event loop (``loop.set_default_executor``),
        which all calls share, so that many of them at once do not start more.

    Returns
    -------
    list of ndarray
        What :func:`parallel_attention_compute` returns.

    Raises
    ------
    DimensionMismatchError, InvalidConfigError, TypeError
        As :func:`parallel_attention_compute`.

    Notes
    -----
    A task that is cancelled drops what has not begun and ends when what runs has ended.

    Examples
    --------
    >>> import asyncio
    >>> import numpy as np
    >>> from ruvector.batch import parallel_attention_compute_async
    >>> x = np.ones((5, 7, 4), np.float32)
    >>> len(asyncio.run(parallel_attention_compute_async("flash", x[:, 0], x, x)))
    5
    """
    batch = _batch(attention_type, queries, keys, values, config)
    return await _run_async(batch, _workers(num_workers), executor)


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
        As in :func:`parallel_attention_compute`, without the width taken from the first
        queries.

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
        self._check(attention, config)
        self._attention = attention
        self._config = config
        self._executor = executor
        self._pool: Executor | None = None
        self._meter = _Meter()

    @staticmethod
    def _check(attention: str | Attention, config: dict[str, Any]) -> None:
        if isinstance(attention, Attention):
            if config:
                raise InvalidConfigError(
                    f"attention must not come with its fields, got {sorted(config)}"
                )
        else:
            one_of(attention, "attention", tuple(_CLASSES))

    @property
    def batch_size(self) -> int:
        """How many queries are in work at a time."""
        return self._batch_size

    @property
    def num_workers(self) -> int:
        """How many workers there are for a batch."""
        return _workers(self._num_workers)

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
                results += _run(part, self.num_workers, self._executor or self._pool)
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
                results += await _run_async(part, self.num_workers, executor)
        return results

    def process_stream(
        self, batches: Iterable[tuple[Queries, Memories, Memories]]
    ) -> Iterator[list[Any]]:
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
    ) -> AsyncIterator[list[Any]]:
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
        batch = _batch(self._attention, queries, keys, values, self._config)
        if len(batch) and not isinstance(self._attention, Attention):
            self._attention, self._config = batch.attention, {}
        return batch

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        for start in range(0, len(batch), self._batch_size):
            yield batch[slice(start, start + self._batch_size)]

    def _in_order(self, batches: Iterator[tuple[Any, Any, Any]]) -> Iterator[list[Any]]:
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


def _workers(num_workers: int | None) -> int:
    if num_workers is None:
        return _config.get_num_threads()
    return integer(num_workers, "num_workers", 1)


def _batch(
    attention_type: str | Attention,
    queries: Queries,
    keys: Memories,
    values: Memories,
    config: dict[str, Any],
) -> Batch:
    BatchProcessor._check(attention_type, config)
    given: Any = queries
    if isinstance(attention_type, Attention):
        attention = attention_type
    elif len(given) == 0:
        attention = DotProductAttention(1)  # what answers nothing is never asked
    else:
        width = _WIDTHS[attention_type]
        if width is not None and width not in config and "config" not in config:
            config = {**config, width: floating(given[0], "queries[0]").shape[-1]}
        attention = _CLASSES[attention_type](**config)
    return checked_batch(attention, queries, keys, values)


def _run(batch: Batch, workers: int, executor: Executor | None) -> list[Any]:
    pieces = batch.pieces(_PIECES * workers)
    if executor is not None:
        return _joined(gather(executor, list(pieces)))
    if workers == 1 or len(pieces) == 1 or batch.packs:
        with _config.num_threads(workers):
            return batch.attend()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers, "ruvector-batch") as pool:
        return _joined(gather(pool, list(pieces)))


async def _run_async(batch: Batch, workers: int, executor: Executor | None) -> list[Any]:
    if not len(batch):
        return []
    pieces = batch.pieces(workers)
    submit: Callable[..., Any] = loop_submit() if executor is None else executor.submit
    return _joined(await gather_async(submit, list(pieces)))


def _joined(lists: list[list[Any]]) -> list[Any]:
    return [output for outputs in lists for output in outputs]


def _close(iterator: Any) -> None:
    if hasattr(iterator, "close"):
        iterator.close()

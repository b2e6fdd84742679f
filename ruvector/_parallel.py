"""Many queries, each over a memory of its own, computed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from . import _config
from ._arrays import floating
from ._checks import MOST_THREADS, integer, one_of
from ._pool import gather, gather_async, loop_submit, submit_of
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
    "Memories",
    "Queries",
    "check_attention",
    "make_batch",
    "parallel_attention_compute",
    "parallel_attention_compute_async",
    "run",
    "run_async",
    "worker_count",
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
    batch = make_batch(attention_type, queries, keys, values, config)
    return run(batch, worker_count(num_workers), executor)


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
    batch = make_batch(attention_type, queries, keys, values, config)
    return await run_async(batch, worker_count(num_workers), executor)


def check_attention(attention: str | Attention, config: dict[str, Any]) -> None:
    """Raise where it is neither the name of a mechanism nor an attention on its own."""
    if not isinstance(attention, Attention):
        one_of(attention, "attention", tuple(_CLASSES))
    elif config:
        raise InvalidConfigError(
            f"attention must not come with its fields, got {sorted(config)}"
        )


def worker_count(num_workers: int | None) -> int:
    """Return how many workers were asked for."""
    if num_workers is None:
        return _config.get_num_threads()
    return min(integer(num_workers, "num_workers", 1), MOST_THREADS)


def make_batch(
    attention_type: str | Attention,
    queries: Queries,
    keys: Memories,
    values: Memories,
    config: dict[str, Any],
) -> Batch:
    """Check the arguments and make what computes them."""
    check_attention(attention_type, config)
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


def run(batch: Batch, workers: int, executor: Executor | None) -> list[Any]:
    """Compute a batch by so many workers."""
    if executor is not None:
        return _joined(gather(executor, list(batch.pieces(_PIECES * workers))))
    if workers == 1 or len(batch) <= 1 or batch.packs:
        with _config.num_threads(workers):
            return batch.attend()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers, "ruvector-batch") as pool:
        return _joined(gather(pool, list(batch.pieces(_PIECES * workers))))


async def run_async(batch: Batch, workers: int, executor: Executor | None) -> list[Any]:
    """Compute a batch by so many workers while the event loop goes on."""
    if not len(batch):
        return []
    pieces = batch.pieces(workers)
    submit: Callable[..., Any] = loop_submit() if executor is None else submit_of(executor)
    return _joined(await gather_async(submit, list(pieces)))


def _joined(lists: list[list[Any]]) -> list[Any]:
    return [output for outputs in lists for output in outputs]

"""Attention over dask arrays: shards stay with their workers, queries and states travel.

Imported only when asked for, with ``import ruvector.dask``; the rest of the package does not
need dask.
"""

from __future__ import annotations

import math
import os
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

try:
    da: Any = import_module("dask.array")
    delayed: Any = import_module("dask").delayed
except ImportError as error:
    raise ImportError("ruvector.dask needs dask: pip install 'ruvector[dask]'") from error

from . import _mapped
from ._arrays import Array, compute_dtype
from ._checks import integer
from ._dask_trainer import Trainer
from ._options import Window, checked_sides
from ._shard_plans import Plan, Upstream
from ._shard_tasks import checked_upstream, cut_mask, summed
from ._shards import make_plan, merge_tree
from .attention import Attention
from .errors import DimensionMismatchError, EmptyInputError, InvalidConfigError

__all__ = ["Gradients", "Trainer", "attention", "attention_backward", "map_npy"]

DaskArray = Any


class Gradients(NamedTuple):
    """What :func:`attention_backward` returns.

    Attributes
    ----------
    query : dask.array.Array
        Gradient of the query: the sum of what every block returned, in order.
    keys, values : dask.array.Array
        In the blocks of the keys. Each is computed, and stays, where its block of keys is.
    """

    query: DaskArray
    keys: DaskArray
    values: DaskArray


def attention(
    query: ArrayLike,
    keys: DaskArray,
    values: DaskArray,
    *,
    attention: Attention | None = None,
    is_causal: bool = False,
    window: Window | None = None,
    num_sink_tokens: int = 0,
    positions: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    return_lse: bool = False,
    num_threads: int = 1,
) -> Any:
    """Attend over keys and values that lie in blocks with the workers of a cluster.

    Every block gives its state, as large as the query; neighbouring states are merged by the
    workers, then the results, until one is left. A worker that dies takes the blocks with it
    that dask then computes again, elsewhere, and the result is the same.

    Parameters
    ----------
    query : array_like, shape (dim,), (m, dim) or (B, m, dim)
        It goes to every worker. A dask array is computed first.
    keys : dask.array.Array, shape (n, dim)
        In any blocks; those along the second axis are joined.
    values : dask.array.Array, shape (n, dim_v)
        Brought to the blocks of the keys.
    attention, is_causal, window, num_sink_tokens, positions, mask
        As in :func:`ruvector.sharding.sharded_attention`.
    return_lse : bool, default False
        Whether to return the log-sum-exp too.
    num_threads : int, default 1
        Kernel threads of one task. Dask's nanny exports ``OMP_NUM_THREADS=1``, which this
        does not depend on; a worker runs as many tasks at a time as it has threads of its
        own, so give it one of those and here the number of its processors, or the other way
        round.

    Returns
    -------
    output : dask.array.Array, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
        In one block, in the query's dtype; nothing is computed before ``compute()``.
    lse : dask.array.Array
        Only with `return_lse`.

    Raises
    ------
    DimensionMismatchError, InvalidConfigError, InvalidMaskError, TypeError
        As :func:`ruvector.sharding.sharded_attention`; InvalidConfigError also where
        positions or a mask need the number of keys in blocks whose size dask does not know.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import ruvector.dask
    >>> keys = da.random.default_rng(0).standard_normal((1000, 16), chunks=(300, 16))
    >>> output = ruvector.dask.attention(np.ones(16), keys, keys)
    >>> output.compute(scheduler="threads").shape
    (16,)
    """
    blocks = _Blocks(keys, values)
    plan, masks = blocks.plan(
        query, attention, is_causal, window, num_sink_tokens, positions, mask, num_threads
    )
    sent = _sent(plan, "plan")
    state = delayed(_state, pure=False)
    merge = delayed(_merge, pure=False)
    states = [
        state(sent, *block, start, part)
        for block, start, part in zip(blocks.pairs, blocks.starts, masks, strict=True)
    ]
    merged = merge_tree(states, lambda first, second: merge(sent, first, second))
    finish = delayed(_finish, nout=2, pure=False)
    output, lse = finish(sent, merged, blocks.width)
    dtype, leading = plan.query.dtype, plan.query.shape[:-1]
    heads = plan.attention._heads
    width = getattr(plan.attention, "out_dim", blocks.width)
    result = da.from_delayed(output, (*leading, width), dtype)
    if not return_lse:
        return result
    shape = leading if heads == 1 else (*leading, heads)
    return result, da.from_delayed(lse, shape, compute_dtype(dtype))


def attention_backward(
    query: ArrayLike,
    keys: DaskArray,
    values: DaskArray,
    output: Any,
    lse: Any,
    grad_output: Any,
    *,
    grad_lse: Any = None,
    attention: Attention | None = None,
    is_causal: bool = False,
    window: Window | None = None,
    num_sink_tokens: int = 0,
    positions: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    num_threads: int = 1,
) -> Gradients:
    """Compute the gradients of :func:`attention`, each block its own.

    Output, log-sum-exp and their gradients go to every worker. The gradients of keys and
    values stay where their blocks are, and a part of the query's gradient comes back.

    Parameters
    ----------
    query, keys, values, attention, is_causal, window, num_sink_tokens, positions, mask, \
num_threads
        As in :func:`attention`. The attention is dot-product, multi-head, flash,
        local-global or graph-rope.
    output, lse : array_like or dask.array.Array
        What :func:`attention` gave for the same arguments with ``return_lse=True``.
    grad_output, grad_lse : array_like or dask.array.Array
        Gradients of the output and, where something depends on it, of the log-sum-exp.

    Returns
    -------
    Gradients
        `query`, `keys` and `values`; nothing is computed before ``compute()``.

    Raises
    ------
    DimensionMismatchError, InvalidConfigError, InvalidMaskError, TypeError
        As :func:`attention`; of `output`, `lse` and gradients when it is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> import ruvector.dask
    >>> keys = da.random.default_rng(0).standard_normal((1000, 16), chunks=(300, 16))
    >>> query = np.ones(16)
    >>> output, lse = ruvector.dask.attention(query, keys, keys, return_lse=True)
    >>> grads = ruvector.dask.attention_backward(query, keys, keys, output, lse, query)
    >>> grads.query.compute(scheduler="threads").shape, grads.keys.chunks[0]
    ((16,), (300, 300, 300, 100))
    """
    blocks = _Blocks(keys, values)
    plan, masks = blocks.plan(
        query, attention, is_causal, window, num_sink_tokens, positions, mask, num_threads
    )
    sent = _sent(plan, "plan")
    upstream = delayed(_upstream, pure=False)(
        sent, blocks.width, output, lse, grad_output, grad_lse
    )
    gradient = delayed(_gradient, nout=3, pure=False)
    add = delayed(np.add, pure=False)
    parts = [
        gradient(sent, upstream, *block, start, part)
        for block, start, part in zip(blocks.pairs, blocks.starts, masks, strict=True)
    ]
    total = merge_tree([part[0] for part in parts], add)
    finished = delayed(_cast, pure=False)(total, plan.query.dtype)
    return Gradients(
        da.from_delayed(finished, plan.query.shape, plan.query.dtype),
        _joined([part[1] for part in parts], blocks.keys),
        _joined([part[2] for part in parts], blocks.values),
    )


def map_npy(path: str | os.PathLike[str], rows: int) -> DaskArray:
    """Return a ``.npy`` file as a dask array whose blocks are maps of the file.

    A worker maps its part of the file when it first needs it. The file must be there under
    the same name for every worker; of its numbers none travels.

    Parameters
    ----------
    path : str or path-like
        The file, of an array with at least one axis.
    rows : int
        How many rows a block has.

    Returns
    -------
    dask.array.Array
        Of the file's shape and dtype, in blocks along the first axis.

    Raises
    ------
    InvalidConfigError
        If `rows` is not an integer of at least 1.
    OSError, ValueError
        If the file is not there, or is not a ``.npy`` file.
    """
    whole = np.load(os.path.abspath(path), mmap_mode="r")
    step = integer(rows, "rows", 1)
    opened = delayed(_mapped.opened, pure=False)
    parts = [whole[start : start + step] for start in range(0, max(len(whole), 1), step)]
    return da.concatenate([
        da.from_delayed(opened(_sent(_mapped.reference(part), "file")), part.shape, part.dtype)
        for part in parts
    ])  # fmt: skip


class _Blocks:
    """Keys and values in the same blocks, and where each begins."""

    def __init__(self, keys: DaskArray, values: DaskArray) -> None:
        for x, name in ((keys, "keys"), (values, "values")):
            if not isinstance(x, da.Array):
                raise TypeError(f"{name} must be a dask array, got {type(x).__name__}")
            if x.ndim != 2:
                raise DimensionMismatchError(f"{name} must have 2 axes, got shape {x.shape}")
        keys = keys.rechunk({1: -1})
        lengths = keys.chunks[0]
        self._known = not any(map(math.isnan, lengths))
        if self._known:
            if values.shape[0] != keys.shape[0]:
                raise DimensionMismatchError(
                    f"values must hold {keys.shape[0]} vectors, one per key, got "
                    f"{values.shape[0]}"
                )
            values = values.rechunk((lengths, -1))
        elif len(values.chunks[0]) != len(lengths):
            raise DimensionMismatchError(
                f"values must have {len(lengths)} blocks like keys, got {len(values.chunks[0])}"
            )
        if not lengths:
            raise EmptyInputError("keys must have at least one block, got none")
        self.keys, self.values = keys, values.rechunk({1: -1})
        self.width = int(values.shape[1])
        self.pairs = list(
            zip(self.keys.to_delayed()[:, 0], self.values.to_delayed()[:, 0], strict=True)
        )
        self.starts = [0] * len(lengths)
        self._total = -1
        if self._known:
            ends = np.cumsum(lengths).tolist()
            self.starts, self._total = [0, *ends[:-1]], ends[-1]

    def plan(
        self,
        query: ArrayLike,
        attention: Attention | None,
        is_causal: bool,
        window: Window | None,
        num_sink_tokens: int,
        positions: ArrayLike | None,
        mask: ArrayLike | None,
        num_threads: int,
    ) -> tuple[Plan, list[Any]]:
        """Return the plan, and the part of the mask of every block."""
        plan = make_plan(
            attention,
            query,
            self._total,
            integer(num_threads, "num_threads", 1),
            is_causal=is_causal,
            sides=checked_sides(window),
            num_sink_tokens=integer(num_sink_tokens, "num_sink_tokens", 0),
            positions=positions,
        )
        if self.keys.shape[1] != plan.attention.dim:
            raise DimensionMismatchError(
                f"keys must have width {plan.attention.dim}, got {self.keys.shape[1]}"
            )
        if not self._known and (mask is not None or plan.numbered):
            raise InvalidConfigError(
                "positions and masks need blocks of known sizes: keys.compute_chunk_sizes()"
            )
        parts = cut_mask(mask, [*self.starts, self._total], plan)
        return plan, [None if part is None else _sent(part, "mask") for part in parts]


def _sent(x: Any, name: str) -> Any:
    # One node of the graph, however many tasks read it; hashing what it holds would cost
    # more than it saves.
    return delayed(x, name=f"ruvector-{name}-{os.urandom(8).hex()}", traverse=False)


def _state(plan: Plan, keys: Array, values: Array, start: int, mask: Any) -> Any:
    return plan.state(keys, values, start, mask)


def _merge(plan: Plan, first: Any, second: Any) -> Any:
    return plan.merge(first, second)


def _finish(plan: Plan, state: Any, width: int) -> tuple[Array, Array]:
    output, lse = plan.finish(state, width)
    return output, np.asarray(lse)


def _upstream(
    plan: Plan, width: int, output: Any, lse: Any, grad_output: Any, grad_lse: Any
) -> Upstream:
    return checked_upstream(plan, width, output, lse, grad_output, grad_lse)


def _gradient(
    plan: Plan, upstream: Upstream, keys: Array, values: Array, start: int, mask: Any
) -> tuple[Array, Array, Array]:
    gradients = plan.gradients(keys, values, start, mask, upstream)
    return summed([gradients.query]), gradients.keys, gradients.values


def _cast(x: Array, dtype: np.dtype[Any]) -> Array:
    return x.astype(dtype, copy=False)


def _joined(parts: list[Any], like: DaskArray) -> DaskArray:
    return da.concatenate([
        da.from_delayed(part, (length, like.shape[1]), like.dtype)
        for part, length in zip(parts, like.chunks[0], strict=True)
    ], allow_unknown_chunksizes=True)  # fmt: skip

"""Attention over a memory in parts, which may lie in other processes or on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array
from ._options import Window
from ._pool import gather
from ._shard_tasks import (
    GradientTask,
    Memory,
    StateTask,
    checked_targets,
    checked_upstream,
    summed,
)
from ._shards import merge_tree
from .attention import Attention

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["ShardedGradients", "sharded_attention", "sharded_attention_backward"]

Shard = Any


class ShardedGradients(NamedTuple):
    """What :func:`sharded_attention_backward` returns.

    Attributes
    ----------
    query : ndarray
        Gradient of the query: the sum of what every shard returned, in shard order.
    shards : list of (ndarray, ndarray)
        Gradients of keys and values of each shard.
    mask : ndarray or None
        Gradient of a float mask.
    """

    query: Array
    shards: list[tuple[Any, Any]]
    mask: Array | None


def sharded_attention(
    query: ArrayLike,
    shards: Sequence[Shard],
    *,
    attention: Attention | None = None,
    executor: Executor | None = None,
    is_causal: bool = False,
    window: Window | None = None,
    num_sink_tokens: int = 0,
    positions: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Any:
    r"""Attend over a memory that lies in shards, and merge what each of them contributes.

    Only the query travels to a shard, and a state of its size back. For softmax attention a
    state is output and log-sum-exp of the shard; those of all shards merge exactly:

    .. math:: L = \ln \sum_s e^{L_s}, \qquad o = \sum_s e^{L_s - L}\, o_s

    Neighbours are merged first, then their results, so the result does not depend on which
    worker was faster.

    Parameters
    ----------
    query : array_like, shape (dim,), (m, dim) or (B, m, dim)
        As in :meth:`ruvector.Attention.compute`.
    shards : sequence
        The parts of the memory, in order. Each is a pair of keys (n_s, dim) and values
        (n_s, dim_v): arrays, or names of ``.npy`` files, which are mapped; or it is a cache: a
        :class:`~ruvector.stream.KVCache`, or any object whose ``attend(query,
        return_lse=True)`` returns output and log-sum-exp (also with ``scale=``, if the
        attention has one of its own). A shard may be empty.
    attention : Attention, optional
        What is computed, :class:`~ruvector.DotProductAttention` by default. Dot-product,
        multi-head, flash, local-global, graph-rope, dual-space, linear (not causal),
        hyperbolic (with midpoints) and edge-featured attention (heads side by side) merge; a
        mixture of experts does not.
    executor : concurrent.futures.Executor, optional
        Who works on the shards: threads, processes, ``dask.distributed``'s
        ``Client.get_executor()``. Without one the caller's thread does, one shard after the
        other. Arrays go to other processes pickled, but of maps of files
        (``np.load(path, mmap_mode="r")``) only path and offset, which must mean the same
        there.
    is_causal : bool, default False
        Whether a query sees no key behind its own position.
    window : tuple of (int or None, int or None), optional
        How many keys to the left and to the right of its own position a query sees. Both,
        and `num_sink_tokens`, are for dot-product, multi-head and flash attention.
    num_sink_tokens : int, default 0
        That many first keys of the whole memory are visible outside of the window too.
    positions : array_like of int, shape (m,), optional
        Where the queries stand among all keys; by default the last m of them, and for
        local-global attention as in its class.
    mask : array_like, shape (n,) or (m, n), optional
        Over the keys of all shards, as in :meth:`ruvector.Attention.compute`.
    return_lse : bool, default False
        Whether to return the log-sum-exp too.
    num_threads : int, optional
        Kernel threads for each shard; by default 1 with an executor, else
        :func:`ruvector.get_num_threads`.

    Returns
    -------
    output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
        What ``attention.compute`` over all keys gives, to rounding. 0 where there are none.
    lse : ndarray
        As ``attention.compute`` gives it. Only with `return_lse`.

    Raises
    ------
    EmptyInputError
        If `shards` is empty, which has no width.
    DimensionMismatchError
        If shapes do not fit each other.
    InvalidConfigError
        If results of the attention do not merge, or it does not go with the options.
    InvalidMaskError
        If the mask has another shape, or is neither bool nor float.
    TypeError
        If an array does not hold real numbers.

    See Also
    --------
    merge_states : The merge alone.
    sharded_attention_backward : The gradients.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> from ruvector.sharding import sharded_attention
    >>> rng = np.random.default_rng(0)
    >>> keys = rng.standard_normal((100, 16), dtype=np.float32)
    >>> shards = [(part, part) for part in np.split(keys, [10, 70])]
    >>> output = sharded_attention(keys[:3], shards)
    >>> whole = ruvector.DotProductAttention(16).compute(keys[:3], keys, keys)
    >>> bool(np.allclose(output, whole, atol=1e-6))
    True
    """
    memory = Memory(shards)
    plan, parts = memory.plan(
        query, attention, executor, num_threads, is_causal, window, num_sink_tokens,
        positions, mask,
    )  # fmt: skip
    tasks = [StateTask(plan, *part) for part in parts]
    states = [task() for task in tasks] if executor is None else gather(executor, list(tasks))
    output, lse = plan.finish(merge_tree(states, plan.merge), memory.width(plan))
    return (output, lse) if return_lse else output


def sharded_attention_backward(
    query: ArrayLike,
    shards: Sequence[Shard],
    output: ArrayLike,
    lse: ArrayLike,
    grad_output: ArrayLike,
    *,
    grad_lse: ArrayLike | None = None,
    attention: Attention | None = None,
    executor: Executor | None = None,
    is_causal: bool = False,
    window: Window | None = None,
    num_sink_tokens: int = 0,
    positions: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    num_threads: int | None = None,
    out: Sequence[tuple[Array, Array]] | None = None,
) -> ShardedGradients:
    r"""Compute the gradients of :func:`sharded_attention`, each shard its own.

    The weights of a shard's keys follow from the log-sum-exp over all shards,
    :math:`p = e^{s - L}`, so output, log-sum-exp and their gradients are all that a shard
    needs of the others. It keeps the gradients of its keys and values and returns its part
    of the query's, which are summed.

    Parameters
    ----------
    query, shards, attention, executor, is_causal, window, num_sink_tokens, positions, mask, \
num_threads
        As in :func:`sharded_attention`. The attention is dot-product, multi-head, flash,
        local-global or graph-rope, and shards are pairs of arrays.
    output, lse : array_like
        What :func:`sharded_attention` returned for the same arguments with
        ``return_lse=True``.
    grad_output : array_like
        Gradient of the output, in its shape.
    grad_lse : array_like, optional
        Gradient of the log-sum-exp, in its shape, where something depends on it.
    out : sequence of (ndarray, ndarray), optional
        Where the gradients of keys and values of each shard go, in shape and dtype of these.
        With processes they must be maps of files, which the workers write, and no gradient
        of a key or value travels.

    Returns
    -------
    ShardedGradients
        `query`, `shards` (the arrays of `out` where given), `mask`.

    Raises
    ------
    EmptyInputError, DimensionMismatchError, InvalidConfigError, InvalidMaskError, TypeError
        As :func:`sharded_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.sharding import sharded_attention, sharded_attention_backward
    >>> rng = np.random.default_rng(0)
    >>> keys = rng.standard_normal((100, 16), dtype=np.float32)
    >>> shards = [(part, part) for part in np.split(keys, [10, 70])]
    >>> output, lse = sharded_attention(keys[0], shards, return_lse=True)
    >>> grads = sharded_attention_backward(keys[0], shards, output, lse, np.ones(16))
    >>> grads.query.shape, [key.shape for key, value in grads.shards]
    ((16,), [(10, 16), (60, 16), (30, 16)])
    """
    memory = Memory(shards)
    plan, parts = memory.plan(
        query, attention, executor, num_threads, is_causal, window, num_sink_tokens,
        positions, mask,
    )  # fmt: skip
    upstream = checked_upstream(plan, memory.width(plan), output, lse, grad_output, grad_lse)
    targets = checked_targets(memory.pairs, out, executor)
    tasks = [
        GradientTask(plan, upstream, target, *part)
        for part, target in zip(parts, targets, strict=True)
    ]
    results = [task() for task in tasks] if executor is None else gather(executor, list(tasks))
    kept = [
        (key, value) if target is None else target
        for (_, key, value, _), target in zip(results, targets, strict=True)
    ]
    masks = [part for *_, part in results if part is not None]
    return ShardedGradients(
        summed([part for part, *_ in results]).astype(plan.query.dtype, copy=False),
        kept,
        np.concatenate(masks, axis=-1) if masks else None,
    )

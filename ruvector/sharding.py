"""Attention over a memory in parts, which may lie in other processes or on other machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _mapped
from ._arrays import Array, compute_dtype, finished, floating
from ._checks import integer
from ._options import Window, checked_sides, read_mask
from ._pool import gather
from ._shards import Plan, Upstream, is_cache, make_plan, merge_tree
from .attention import Attention
from .errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    InvalidMaskError,
)

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
        (n_s, dim_v): arrays, or names of ``.npy`` files, which are mapped; or it is a cache,
        an object whose ``attend(query, return_lse=True)`` returns output and log-sum-exp.
        A shard may be empty.
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
    memory = _Memory(shards)
    plan, parts = memory.plan(
        query, attention, executor, num_threads, is_causal, window, num_sink_tokens,
        positions, mask,
    )  # fmt: skip
    tasks = [_State(plan, *part) for part in parts]
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
    memory = _Memory(shards)
    plan, parts = memory.plan(
        query, attention, executor, num_threads, is_causal, window, num_sink_tokens,
        positions, mask,
    )  # fmt: skip
    upstream = checked_upstream(plan, memory.width(plan), output, lse, grad_output, grad_lse)
    targets = _checked_targets(memory.pairs, out, executor)
    tasks = [
        _Gradient(plan, upstream, target, *part)
        for part, target in zip(parts, targets, strict=True)
    ]
    results = [task() for task in tasks] if executor is None else gather(executor, list(tasks))
    kept = [
        (key, value) if target is None else target
        for (_, key, value, _), target in zip(results, targets, strict=True)
    ]
    masks = [part for *_, part in results if part is not None]
    return ShardedGradients(
        summed([part for part, *_ in results], plan.query),
        kept,
        np.concatenate(masks, axis=-1) if masks else None,
    )


class _Memory:
    """Shards as pairs of arrays or caches, and where each begins."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        if not len(shards):
            raise EmptyInputError("shards must hold at least one, got none")
        self.pairs = [
            shard if is_cache(shard) else _pair(shard, f"shards[{i}]")
            for i, shard in enumerate(shards)
        ]
        self._caches = any(map(is_cache, self.pairs))
        lengths = [0 if is_cache(pair) else pair[0].shape[-2] for pair in self.pairs]
        self._starts = [0, *np.cumsum(lengths).tolist()]

    def plan(
        self,
        query: ArrayLike,
        attention: Attention | None,
        executor: Executor | None,
        num_threads: int | None,
        is_causal: bool,
        window: Window | None,
        num_sink_tokens: int,
        positions: ArrayLike | None,
        mask: ArrayLike | None,
    ) -> tuple[Plan, list[tuple[Any, int, Any]]]:
        """Return the plan, and shard, first key and part of the mask of every part."""
        if num_threads is not None:
            num_threads = integer(num_threads, "num_threads", 1)
        elif executor is not None:
            num_threads = 1
        plan = make_plan(
            attention,
            query,
            -1 if self._caches else self._starts[-1],
            num_threads,
            is_causal=is_causal,
            sides=checked_sides(window),
            num_sink_tokens=integer(num_sink_tokens, "num_sink_tokens", 0),
            positions=positions,
        )
        if self._caches and (mask is not None or not plan.sight.everything):
            raise InvalidConfigError(
                "shards that are caches take no mask, window or causal rule here"
            )
        self._check_widths(plan)
        masks = cut_mask(mask, self._starts, plan)
        return plan, list(zip(self.pairs, self._starts[:-1], masks, strict=True))

    def width(self, plan: Plan) -> int:
        """Return the width of the output."""
        for pair in self.pairs:
            if not is_cache(pair):
                return int(pair[1].shape[-1])
        return plan.attention.dim

    def _check_widths(self, plan: Plan) -> None:
        width = self.width(plan)
        for i, pair in enumerate(self.pairs):
            if is_cache(pair):
                continue
            for x, name, wanted in (
                (pair[0], "keys", plan.attention.dim),
                (pair[1], "values", width),
            ):
                if x.shape[-1] != wanted:
                    raise DimensionMismatchError(
                        f"shards[{i}] must have {name} of width {wanted}, got {x.shape[-1]}"
                    )


class _State:
    """The task of one shard: attend."""

    __slots__ = ("_mask", "_plan", "_shard", "_start")

    def __init__(self, plan: Plan, shard: Any, start: int, mask: Any) -> None:
        self._plan = plan
        self._shard = shard
        self._start = start
        self._mask = mask

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_state, (self._plan, _sent(self._shard), self._start, self._mask)

    def __call__(self) -> Any:
        if is_cache(self._shard):
            return self._shard.attend(self._plan.query, return_lse=True)
        return self._plan.state(*self._shard, self._start, self._mask)


class _Gradient:
    """The task of one shard in the other direction."""

    __slots__ = ("_mask", "_plan", "_shard", "_start", "_target", "_upstream")

    def __init__(
        self, plan: Plan, upstream: Upstream, target: Any, shard: Any, start: int, mask: Any
    ) -> None:
        self._plan = plan
        self._upstream = upstream
        self._target = target
        self._shard = shard
        self._start = start
        self._mask = mask

    def __reduce__(self) -> tuple[Any, ...]:
        target = None if self._target is None else _sent(self._target)
        shard = _sent(self._shard)
        return _open_gradient, (
            self._plan, self._upstream, target, shard, self._start, self._mask,
        )  # fmt: skip

    def __call__(self) -> tuple[Any, ...]:
        gradients = self._plan.gradients(*self._shard, self._start, self._mask, self._upstream)
        pair: tuple[Any, Any] = gradients.keys, gradients.values
        if self._target is not None:
            for target, gradient in zip(self._target, pair, strict=True):
                target[...] = gradient
            pair = None, None
        return gradients.query, *pair, gradients.mask


def _open_state(plan: Plan, shard: Any, start: int, mask: Any) -> _State:
    return _State(plan, _received(shard), start, mask)


def _open_gradient(
    plan: Plan, upstream: Upstream, target: Any, shard: Any, start: int, mask: Any
) -> _Gradient:
    return _Gradient(plan, upstream, _received(target), _received(shard), start, mask)


def _sent(shard: Any) -> Any:
    return shard if is_cache(shard) else tuple(map(_mapped.reference, shard))


def _received(shard: Any) -> Any:
    return tuple(map(_mapped.opened, shard)) if isinstance(shard, tuple) else shard


def _pair(shard: Any, name: str) -> tuple[Array, Array]:
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise TypeError(
            f"{name} must be a pair (keys, values) or an object with attend, got "
            f"{type(shard).__name__}"
        )
    pair = [_array(x, f"{name}[{i}]") for i, x in enumerate(shard)]
    keys, values = pair
    if keys.ndim not in (2, 3) or values.ndim != keys.ndim or len(values) != len(keys):
        raise DimensionMismatchError(
            f"{name} must hold keys of shape (n, dim) and values of shape (n, dim_v), got "
            f"{keys.shape} and {values.shape}"
        )
    return keys, values


def _array(x: Any, name: str) -> Array:
    if isinstance(x, str | os.PathLike):
        x = np.load(x, mmap_mode="r")
    # A map stays one, so that it can travel as a name.
    array = floating(x, name)
    return x if isinstance(x, np.ndarray) and x.dtype == array.dtype else array


def cut_mask(mask: Any, starts: list[int], plan: Plan) -> list[Any]:
    """Cut a mask over all keys into the parts of the shards, None where there is none."""
    parts = len(starts) - 1
    if mask is None:
        return [None] * parts
    read = read_mask(mask, "mask", compute_dtype(plan.query.dtype))
    if read.ndim == 0 or read.shape[-1] != starts[-1]:
        raise InvalidMaskError(
            f"mask must have {starts[-1]} entries on its last axis, one for each key of the "
            f"shards, got shape {read.shape}"
        )
    return [read[..., a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]


def checked_upstream(
    plan: Plan,
    width: int,
    output: ArrayLike,
    lse: ArrayLike,
    grad_output: ArrayLike,
    grad_lse: ArrayLike | None,
) -> Upstream:
    """Check what the gradients of all shards need of the whole."""
    leading, heads = plan.query.shape[:-1], plan.attention._heads
    rows = leading if heads == 1 else (*leading, heads)

    def checked(x: ArrayLike, name: str, shape: tuple[int, ...]) -> Array:
        array = floating(x, name)
        if array.shape != shape:
            raise DimensionMismatchError(f"{name} must have shape {shape}, got {array.shape}")
        return array

    return Upstream(
        checked(output, "output", (*leading, width)),
        checked(lse, "lse", rows),
        checked(grad_output, "grad_output", (*leading, width)),
        None if grad_lse is None else checked(grad_lse, "grad_lse", rows),
    )


def _checked_targets(
    pairs: list[Any], out: Sequence[tuple[Array, Array]] | None, executor: object
) -> list[Any]:
    if any(map(is_cache, pairs)):
        raise InvalidConfigError("shards must be pairs of arrays for gradients, got a cache")
    if out is None:
        return [None] * len(pairs)
    if len(out) != len(pairs):
        raise DimensionMismatchError(
            f"out must hold {len(pairs)} pairs, one per shard, got {len(out)}"
        )
    for i, (target, pair) in enumerate(zip(out, pairs, strict=True)):
        for x, like in zip(target, pair, strict=True):
            if x.shape != like.shape or x.dtype != like.dtype or not x.flags.writeable:
                raise DimensionMismatchError(
                    f"out[{i}] must hold writeable arrays of shape {like.shape} and dtype "
                    f"{like.dtype}, got {x.shape} and {x.dtype}"
                )
    return [tuple(target) for target in out]


def summed(parts: list[Array], like: Array) -> Array:
    """Return the sum of gradients of the query, neighbours first."""
    wide = [part.astype(compute_dtype(like.dtype)) for part in parts]
    return finished(merge_tree(wide, np.add), like.shape, like.dtype)

"""Shards as they are given and as they are sent, and the tasks that workers get."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from . import _mapped
from ._arrays import Array, compute_dtype, kept
from ._checks import MOST_THREADS, extent, integer
from ._options import Window, checked_sides, read_mask
from ._shard_plans import Plan, Upstream
from ._shards import is_cache, make_plan, merge_tree
from .attention import Attention
from .errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    InvalidMaskError,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "GradientTask",
    "Memory",
    "StateTask",
    "checked_targets",
    "checked_upstream",
    "cut_mask",
    "summed",
]


class Memory:
    """Shards as pairs of arrays or caches, and where each begins."""

    def __init__(self, shards: Sequence[Any]) -> None:
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
            num_threads = min(integer(num_threads, "num_threads", 1), MOST_THREADS)
        elif executor is not None:
            num_threads = 1
        plan = make_plan(
            attention,
            query,
            -1 if self._caches else self._starts[-1],
            num_threads,
            is_causal=is_causal,
            sides=checked_sides(window),
            num_sink_tokens=extent(num_sink_tokens, "num_sink_tokens"),
            positions=positions,
        )
        if self._caches and not plan.takes_caches:
            raise InvalidConfigError(
                "attention must be dot-product or multi-head attention for shards that are "
                f"caches, got {attention!r}"
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


class StateTask:
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
            scale = self._plan.own_scale
            options = {} if scale is None else {"scale": scale}
            with self._plan.own_threads():
                return self._shard.attend(self._plan.query, return_lse=True, **options)
        keys, values = self._shard
        return self._plan.state(keys, values, self._start, self._mask)


class GradientTask:
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
        keys, values = self._shard
        gradients = self._plan.gradients(keys, values, self._start, self._mask, self._upstream)
        pair: tuple[Any, Any] = gradients.keys, gradients.values
        if self._target is not None:
            for target, gradient in zip(self._target, pair, strict=True):
                target[...] = gradient
            pair = None, None
        return gradients.query, *pair, gradients.mask


def _open_state(plan: Plan, shard: Any, start: int, mask: Any) -> StateTask:
    return StateTask(plan, _received(shard), start, mask)


def _open_gradient(
    plan: Plan, upstream: Upstream, target: Any, shard: Any, start: int, mask: Any
) -> GradientTask:
    return GradientTask(plan, upstream, _received(target), _received(shard), start, mask)


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
    return kept(x, name)


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
    return [read[..., a:b] for a, b in pairwise(starts)]


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
        array = kept(x, name)
        if array.shape != shape:
            raise DimensionMismatchError(f"{name} must have shape {shape}, got {array.shape}")
        return array

    return Upstream(
        checked(output, "output", (*leading, width)),
        checked(lse, "lse", rows),
        checked(grad_output, "grad_output", (*leading, width)),
        None if grad_lse is None else checked(grad_lse, "grad_lse", rows),
    )


def checked_targets(
    pairs: list[Any], out: Sequence[tuple[Array, Array]] | None, executor: object
) -> list[Any]:
    """Return where the gradients of each shard go, None where they are returned."""
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


def summed(parts: list[Array]) -> Array:
    """Return the sum of gradients, neighbours first, in the compute dtype."""
    wide = [part.astype(compute_dtype(part.dtype), copy=False) for part in parts]
    return merge_tree(wide, np.add)

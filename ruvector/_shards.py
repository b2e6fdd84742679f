"""How attention over a memory in parts is planned, and its parts merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import kept
from ._shard_plans import (
    EdgePlan,
    MidpointPlan,
    Plan,
    RotaryPlan,
    Sight,
    SoftmaxPlan,
    SumsPlan,
)
from .attention import (
    Attention,
    DotProductAttention,
    EdgeFeaturedAttention,
    FlashAttention,
    GraphRoPEAttention,
    LinearAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
)
from .attention._ball import BallAttention
from .attention.local_global import checked_positions, standing
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["is_cache", "make_plan", "merge_tree"]

_T = TypeVar("_T")
_PLAIN = (DotProductAttention, MultiHeadAttention, FlashAttention)


def make_plan(
    attention: Attention | None,
    query: ArrayLike,
    total: int,
    threads: int | None,
    *,
    is_causal: bool,
    sides: tuple[int, int],
    num_sink_tokens: int,
    positions: ArrayLike | None,
) -> Plan:
    """Check a query and an attention, and choose how its parts are computed and merged.

    Parameters
    ----------
    attention : Attention or None
        None for dot-product attention.
    query : array_like
    total : int
        Number of keys of all parts together, -1 where it is not known.
    threads : int or None
        As in :class:`Plan`.
    is_causal, sides, num_sink_tokens, positions
        The visible set; (-1, -1) for no window.
    """
    q = kept(query, "query")
    if attention is None:
        if q.ndim == 0:
            raise DimensionMismatchError("query must have at least 1 axis, got shape ()")
        attention = DotProductAttention(q.shape[-1])
    if not isinstance(attention, Attention):
        raise TypeError(f"attention must be an Attention, got {type(attention).__name__}")
    if not 1 <= q.ndim <= 3 or q.shape[-1] != attention.dim:
        dim = attention.dim
        raise DimensionMismatchError(
            f"query must have shape ({dim},), (m, {dim}) or (B, m, {dim}), got {q.shape}"
        )
    rows = 1 if q.ndim == 1 else q.shape[-2]
    limited = is_causal or sides != (-1, -1)
    if isinstance(attention, LocalGlobalAttention):
        if limited:
            raise _unlimited(attention)
        _known(total)
        stands = standing(rows, total, positions)
        half = attention.local_window // 2
        sight = Sight(
            left=half,
            right=half,
            num_sinks=attention.global_tokens,
            symmetric=stands.get("symmetric", False),
            positions=stands.get("positions", np.arange(rows)),
        )
        return SoftmaxPlan(DotProductAttention(attention.dim), q, sight, threads)
    if type(attention) in _PLAIN:
        if isinstance(attention, FlashAttention):
            is_causal = is_causal or attention.causal
            attention = DotProductAttention(attention.dim)
        sight = Sight(is_causal, *sides, num_sink_tokens)
        if not sight.everything:
            if positions is None:
                _known(total)
                places = np.arange(total - rows, total)
            else:
                places = checked_positions(positions, rows)
            sight = Sight(is_causal, *sides, num_sink_tokens, positions=places)
        return SoftmaxPlan(attention, q, sight, threads)
    if limited or positions is not None:
        raise _unlimited(attention)
    return _other(attention)(attention, q, Sight(), threads)


def _other(attention: Attention) -> type[Plan]:
    if isinstance(attention, GraphRoPEAttention):
        return RotaryPlan
    if isinstance(attention, BallAttention):
        attention._check_mergeable()
        return MidpointPlan
    if isinstance(attention, LinearAttention) and not attention.causal:
        return SumsPlan
    if isinstance(attention, EdgeFeaturedAttention) and (
        attention.concat_heads or attention.num_heads == 1
    ):
        return EdgePlan
    raise InvalidConfigError(
        f"attention must be one whose results over parts of a memory merge, got {attention!r}"
    )


def _unlimited(attention: Attention) -> InvalidConfigError:
    return InvalidConfigError(
        "is_causal, window and positions are for dot-product, multi-head and flash attention, "
        f"got them with {attention!r}"
    )


def _known(total: int) -> None:
    if total < 0:
        raise InvalidConfigError("positions need shards of known lengths")


def is_cache(shard: Any) -> bool:
    """Tell whether a shard attends by itself, as a KVCache does."""
    return hasattr(shard, "attend")


def merge_tree(states: list[_T], merge: Callable[[_T, _T], _T]) -> _T:
    """Merge neighbours, then the results, until one is left: log2 of their number rounds."""
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return states[0]

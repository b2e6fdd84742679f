"""Attention with rotary positions for the command line."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .attention import GraphRoPEAttention, RoPEConfig
from .errors import DimensionMismatchError, InvalidConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROPE_FIELDS", "attend_graph_rope", "block_positions"]

ROPE_FIELDS = (
    "max_position",
    "base",
    "scaling",
    "scaling_factor",
    "original_max_position",
    "layout",
)


@lru_cache(maxsize=1)
def _attention(config: RoPEConfig) -> GraphRoPEAttention:
    # Kept from one block of queries to the next, with its table of angles.
    return GraphRoPEAttention(config)


def attend_graph_rope(
    config: RoPEConfig,
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    mask: NDArray[Any] | None,
    query_positions: NDArray[Any] | None,
    key_positions: NDArray[Any] | None,
) -> NDArray[Any]:
    """Attend from queries at 0 to keys at 0, 1, ... where no positions are given."""
    for option, positions in (("query", query_positions), ("key", key_positions)):
        if positions is not None and positions.dtype.kind not in "iu":
            raise InvalidConfigError(
                f"--{option}-positions must hold integers, got {positions.dtype}"
            )
    attention = _attention(config)
    out: NDArray[Any]
    if query_positions is None and key_positions is None:
        out = attention.compute(*arrays, mask=mask)
    else:
        out = attention.compute_with_positions(
            *arrays,
            0 if query_positions is None else query_positions,
            range(len(arrays[1])) if key_positions is None else key_positions,
            mask=mask,
        )
    return out


def block_positions(positions: NDArray[Any], start: int, stop: int, total: int) -> NDArray[Any]:
    """Return where some queries stand: the one position, or those from start to stop."""
    if positions.shape in ((), (1,)):
        return positions.reshape(())
    if positions.shape == (total,):
        return positions[start:stop]
    raise DimensionMismatchError(
        f"--query-positions must have shape () or ({total},), got {positions.shape}"
    )

"""Checks of what modifies the scores of dense attention: masks, windows, slopes, sequences."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ._arrays import Array, cast, floating, integers, view
from ._checks import extent, finite, one_of
from .errors import DimensionMismatchError, InvalidConfigError, InvalidMaskError

__all__ = [
    "Alignment",
    "Window",
    "broadcast_mask",
    "checked_sides",
    "read_mask",
    "score_options",
    "sequence_options",
]

Window = tuple[int | None, int | None]
Alignment = Literal["top_left", "bottom_right"]

_ALIGNMENTS = ("top_left", "bottom_right")


def read_mask(mask: object, name: str, dtype: np.dtype[Any]) -> Array:
    """Return a mask as bool, or as a bias of the given compute dtype, in its own shape.

    Raises
    ------
    InvalidMaskError
        If it holds integers: 0 and 1 could mean either kind of mask.
    TypeError
        If it is complex, an object or a string.
    """
    array, is_bfloat16 = view(mask, name)
    if array.dtype == np.bool_:
        return array
    if not is_bfloat16:
        if array.dtype.kind != "f":
            error = InvalidMaskError if array.dtype.kind in "iu" else TypeError
            raise error(
                f"{name} must be bool (True attends) or float (added to the scores), "
                f"got dtype {array.dtype}"
            )
        array = floating(array, name)
    return cast(array, dtype)


def broadcast_mask(mask: Array, name: str, shape: tuple[int, ...]) -> Array:
    """View a mask in the shape of the scores.

    Raises
    ------
    InvalidMaskError
        If it does not broadcast to that shape.
    """
    if mask.shape == shape:
        return mask
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise InvalidMaskError(
            f"{name} must broadcast to {shape}, got shape {mask.shape}"
        ) from None


def score_options(
    *,
    features: int,
    heads: int,
    dtype: np.dtype[Any],
    is_causal: bool,
    scale: float | None,
    causal_alignment: str,
    window: tuple[int | None, int | None] | None,
    num_sink_tokens: int,
    sink_logits: object,
    softcap: float | None,
    alibi_slopes: object,
) -> dict[str, Any]:
    """Return the checked fields of an ``AttentionSpec``, but for masks and sequences.

    Parameters
    ----------
    features : int
        Width of one head of the query, for the default scale.
    heads : int
        Number of query heads.
    dtype : dtype
        The compute dtype.
    is_causal, scale, causal_alignment, window, num_sink_tokens, sink_logits, softcap, \
alibi_slopes
        As in :func:`ruvector.scaled_dot_product_attention`.
    """
    options: dict[str, Any] = {
        "scale": max(features, 1) ** -0.5 if scale is None else finite(scale, "scale")
    }
    if is_causal:
        options["causal"] = True
    if one_of(causal_alignment, "causal_alignment", _ALIGNMENTS) == "bottom_right":
        options["bottom_right"] = True
    if window is not None:
        options["left"], options["right"] = checked_sides(window)
    if num_sink_tokens != 0:
        options["num_sinks"] = extent(num_sink_tokens, "num_sink_tokens")
    if softcap is not None:
        options["softcap"] = finite(softcap, "softcap", positive=True)
    if sink_logits is not None:
        options["sink_logits"] = _per_head(sink_logits, "sink_logits", heads, dtype)
    if alibi_slopes is not None:
        options["slopes"] = _per_head(alibi_slopes, "alibi_slopes", heads, dtype)
    return options


def sequence_options(
    cu_seqlens_q: object, cu_seqlens_k: object, total_q: int, total_k: int
) -> dict[str, NDArray[np.int64]]:
    """Return the checked sequence boundaries of a ragged call.

    Parameters
    ----------
    cu_seqlens_q, cu_seqlens_k : array_like of int, shape (S + 1,)
    total_q, total_k : int
        Number of packed rows on each side.
    """
    cu_q = _boundaries(cu_seqlens_q, "cu_seqlens_q", total_q)
    cu_k = _boundaries(cu_seqlens_k, "cu_seqlens_k", total_k)
    if cu_q.shape != cu_k.shape:
        raise DimensionMismatchError(
            f"cu_seqlens_k must have length {cu_q.size} like cu_seqlens_q, got {cu_k.size}"
        )
    return {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k}


def checked_sides(window: Any) -> tuple[int, int]:
    """Return how far a window reaches to the left and to the right, -1 where it is open."""
    if window is None:
        return -1, -1
    if not isinstance(window, tuple | list) or len(window) != 2:
        raise InvalidConfigError(f"window must be a pair (left, right), got {window!r}")
    left, right = (
        # A position plus sys.maxsize would overflow; half of it sees as much.
        -1 if side is None else extent(side, f"window[{i}]")
        for i, side in enumerate(window)
    )
    return left, right


def _per_head(x: object, name: str, heads: int, dtype: np.dtype[Any]) -> Array:
    array = floating(x, name)
    if array.shape != (heads,):
        raise DimensionMismatchError(
            f"{name} must have shape ({heads},), one number per query head, got {array.shape}"
        )
    return np.ascontiguousarray(cast(array, dtype))


def _boundaries(x: object, name: str, total: int) -> NDArray[np.int64]:
    cu = integers(x, name)
    if cu.ndim != 1 or cu.size == 0:
        raise DimensionMismatchError(
            f"{name} must have one axis and at least one entry, got shape {cu.shape}"
        )
    if cu[0] != 0 or cu[-1] != total:
        raise DimensionMismatchError(
            f"{name} must run from 0 to {total}, the number of packed rows, "
            f"got {cu[0]} to {cu[-1]}"
        )
    if np.any(cu[1:] < cu[:-1]):
        raise InvalidConfigError(f"{name} must not decrease")
    return cu

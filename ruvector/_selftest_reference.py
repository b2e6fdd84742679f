"""The formula of softmax attention, in float64 and with every score in memory at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["attention", "bfloat16_bits", "bfloat16_values"]


def attention(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    attn_mask: NDArray[Any] | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    causal_alignment: str = "top_left",
    window: tuple[int | None, int | None] | None = None,
    num_sink_tokens: int = 0,
    sink_logits: NDArray[Any] | None = None,
    softcap: float | None = None,
    alibi_slopes: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return output, log-sum-exp and weights of ``(B, H, L, D)`` arrays.

    Parameters
    ----------
    query, key, value : ndarray
        ``(B, H, Lq, D)``, ``(B, Hkv, Lk, D)``, ``(B, Hkv, Lk, Dv)``.
    attn_mask, is_causal, scale, causal_alignment, window, num_sink_tokens, sink_logits, \
softcap, alibi_slopes
        As in :func:`ruvector.scaled_dot_product_attention`.

    Returns
    -------
    tuple of ndarray
        ``(B, H, Lq, Dv)``, ``(B, H, Lq)`` and ``(B, H, Lq, Lk)``, float64.
    """
    group = query.shape[1] // key.shape[1]
    q = query.astype(np.float64)
    k, v = (np.repeat(array.astype(np.float64), group, axis=1) for array in (key, value))
    m, n = q.shape[2], k.shape[2]
    scores = q @ k.swapaxes(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    columns = np.arange(n)
    rows = np.arange(m)[:, None] + (n - m if causal_alignment == "bottom_right" else 0)
    if alibi_slopes is not None:
        scores -= alibi_slopes.astype(np.float64)[:, None, None] * np.abs(rows - columns)
    visible = np.ones(scores.shape, bool)
    if attn_mask is not None and attn_mask.dtype == bool:
        visible &= attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        visible &= columns <= rows
    if window is not None:
        left, right = window
        near = (left is None) | (columns >= rows - (left or 0))
        near &= (right is None) | (columns <= rows + (right or 0))
        visible &= near | (columns < num_sink_tokens)
    scores[~visible] = -np.inf
    sinks = np.full((1, q.shape[1], 1), -np.inf)
    if sink_logits is not None:
        sinks[0, :, 0] = sink_logits
    top = np.maximum(scores.max(axis=-1, initial=-np.inf), sinks)
    shift = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - shift[..., None])
    total = weights.sum(axis=-1) + np.exp(sinks - shift)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + shift
    weights /= np.where(total > 0, total, 1.0)[..., None]
    return weights @ v, lse, weights


def bfloat16_bits(array: NDArray[Any]) -> NDArray[np.uint16]:
    """Round finite numbers to the nearest bfloat16, ties to even, and return its bits."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers that bfloat16 bits stand for."""
    return (bits.astype(np.uint32) << 16).view(np.float32)

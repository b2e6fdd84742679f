"""The weights of softmax attention themselves: all of them, or the largest."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arrays import Array, cast, compute_dtype, floating
from ._checks import integer
from ._options import Alignment, Window
from ._problem import build_problem

__all__ = ["attention_weights_from", "top_k_keys"]


def attention_weights_from(
    query: ArrayLike,
    key: ArrayLike,
    attn_mask: ArrayLike | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal_alignment: Alignment = "top_left",
    window: Window | None = None,
    num_sink_tokens: int = 0,
    sink_logits: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> Array:
    """Return the weight that each query gives to each key.

    The result is as large as the scores, ``Lq x Lk`` per head, which is what
    :func:`scaled_dot_product_attention` avoids: use it to look at weights, and
    :func:`top_k_keys` to find the largest.

    Parameters
    ----------
    query : array_like, shape (..., H, Lq, D)
        Queries.
    key : array_like, shape (..., Hkv, Lk, D)
        Keys.
    attn_mask, is_causal, scale, enable_gqa, causal_alignment, window, num_sink_tokens, \
sink_logits, softcap, alibi_slopes
        As in :func:`scaled_dot_product_attention`.

    Returns
    -------
    ndarray, shape (..., H, Lq, Lk)
        float32 (float64 for a float64 query). Rows add up to 1, or to less with
        `sink_logits`; hidden keys have 0, and so has a row that sees nothing.

    Raises
    ------
    DimensionMismatchError, InvalidMaskError, InvalidConfigError, TypeError
        As :func:`scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> query, keys = np.ones((1, 4)), np.eye(2, 4)
    >>> ruvector.attention_weights_from(query, keys)
    array([[0.5, 0.5]])
    """
    q, k = floating(query, "query"), floating(key, "key")
    problem = build_problem(
        (q, k),
        ("query", "key"),
        attn_mask,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
        scale=scale,
        causal_alignment=causal_alignment,
        window=window,
        num_sink_tokens=num_sink_tokens,
        sink_logits=sink_logits,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    weights = cast(problem.weights(), compute_dtype(q.dtype))
    return weights[0] if max(q.ndim, k.ndim) == 2 else weights


def top_k_keys(
    query: ArrayLike,
    keys: ArrayLike,
    k: int,
    attn_mask: ArrayLike | None = None,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal_alignment: Alignment = "top_left",
    window: Window | None = None,
    num_sink_tokens: int = 0,
    sink_logits: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> tuple[NDArray[np.int64], Array]:
    """Find the keys that each query attends to most, in memory of one tile.

    Parameters
    ----------
    query : array_like, shape (..., H, Lq, D) or (D,)
        Queries. A single vector goes with `keys` of two axes.
    keys : array_like, shape (..., Hkv, Lk, D)
        Keys.
    k : int
        How many keys to find for each query, at least 1.
    attn_mask, is_causal, scale, enable_gqa, causal_alignment, window, num_sink_tokens, \
sink_logits, softcap, alibi_slopes
        As in :func:`scaled_dot_product_attention`.

    Returns
    -------
    indices : ndarray of int64, shape (..., H, Lq, k)
        Positions among the keys by falling weight; the lower one first where weights are
        equal. -1 where a query sees fewer than k keys.
    weights : ndarray, shape (..., H, Lq, k)
        Their softmax weights among all keys, float32 (float64 for a float64 query); 0
        beside an index of -1.

    Raises
    ------
    DimensionMismatchError, InvalidMaskError, InvalidConfigError, TypeError
        As :func:`scaled_dot_product_attention`.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> memory = np.eye(3, dtype=np.float32)
    >>> indices, weights = ruvector.top_k_keys([0.0, 2.0, 1.0], memory, k=2, scale=1.0)
    >>> indices
    array([1, 2])
    >>> weights.round(3)
    array([0.665, 0.245], dtype=float32)
    """
    q, m = floating(query, "query"), floating(keys, "keys")
    count = integer(k, "k", 1)
    single = q.ndim == 1 and m.ndim == 2
    problem = build_problem(
        (q[np.newaxis] if single else q, m),
        ("query", "keys"),
        attn_mask,
        is_causal=is_causal,
        enable_gqa=enable_gqa,
        scale=scale,
        causal_alignment=causal_alignment,
        window=window,
        num_sink_tokens=num_sink_tokens,
        sink_logits=sink_logits,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
    )
    indices, weights = problem.top_k(count)
    weights = cast(weights, compute_dtype(q.dtype))
    if max(q.ndim, m.ndim) == 2:
        indices, weights = indices[0], weights[0]
    if single:
        indices, weights = indices[0], weights[0]
    return indices, weights

"""Softmax attention as functions of arrays with any number of batch axes."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from ._arrays import Array, Output
from ._gradients import AttentionGradients, attention_backward
from ._linear import linear_attention
from ._linear_gradients import LinearGradients, linear_attention_backward
from ._options import Alignment, Window
from ._sdpa import Call
from ._states import merge_states
from ._weights import attention_weights_from, top_k_keys

__all__ = [
    "AttentionGradients",
    "LinearGradients",
    "attention_backward",
    "attention_weights_from",
    "linear_attention",
    "linear_attention_backward",
    "merge_states",
    "scaled_dot_product_attention",
    "top_k_keys",
]


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
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
    cu_seqlens_q: ArrayLike | None = None,
    cu_seqlens_k: ArrayLike | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Any:
    r"""Attend from queries to keys and average the values, in memory of one tile.

    The first arguments are those of ``torch.nn.functional.scaled_dot_product_attention``.
    For query `i` and key `j` of one head the score is, in this order,

    .. math::

        s &= \mathrm{scale}\; q_i \cdot k_j \\
        s &= c \tanh(s / c)                &&\text{with } c = \mathrm{softcap} \\
        s &= s - \mathrm{slope}\,|i + \mathrm{off} - j|  &&\text{with ALiBi} \\
        s &= s + \mathrm{mask}_{ij}        &&\text{with a float mask}

    and key `j` is visible when the causal rule, the bool mask, and the window (or the rule
    for sink tokens) all let it through. ``off`` is 0 for ``"top_left"`` and ``Lk - Lq`` for
    ``"bottom_right"``.

    Parameters
    ----------
    query : array_like, shape (..., H, Lq, D)
        Queries, with any number of batch axes; two axes alone mean one head. float32,
        float64, float16 or bfloat16; the last axis contiguous, the others with any
        strides, or else one copy is made.
    key : array_like, shape (..., Hkv, Lk, D)
        Keys. Batch axes broadcast against the query's, and so does a single head.
    value : array_like, shape (..., Hkv, Lk, Dv)
        Values.
    attn_mask : array_like, optional
        Broadcastable to ``(..., H, Lq, Lk)``, never repeated in memory. Bool: True
        attends. Float: added to the scores, and -inf hides. Both kinds combine with
        `is_causal`.
    dropout_p : float, default 0.0
        Must be 0: there is no dropout.
    is_causal : bool, default False
        Whether query `i` sees only keys ``j <= i + off``.
    scale : float, optional
        Factor on the dot products; ``1 / sqrt(D)`` by default.
    enable_gqa : bool, default False
        Allow H to be a multiple of Hkv; query head `h` then reads key head
        ``h // (H // Hkv)``.
    causal_alignment : {"top_left", "bottom_right"}, default "top_left"
        Where the queries stand among the keys: from the first key on, as in torch, or up
        to the last one, as in FlashAttention-2 and decoding. It also holds for `window`
        and `alibi_slopes`.
    window : tuple of (int or None, int or None), optional
        How many keys to the left and to the right of its own position a query sees; None
        leaves a side unbounded.
    num_sink_tokens : int, default 0
        That many first keys are visible outside of the window too.
    sink_logits : array_like, shape (H,), optional
        One more score per head in the denominator, without a value.
    softcap : float, optional
        Bound on the absolute value of the scaled dot products.
    alibi_slopes : array_like, shape (H,), optional
        Slope per head of the penalty on distance.
    cu_seqlens_q, cu_seqlens_k : array_like of int, shape (S + 1,), optional
        Where each of S packed sequences begins, ending with the total. `query`, `key` and
        `value` are then ``(T, H, D)``, ``(Tk, Hkv, D)`` and ``(Tk, Hkv, Dv)``, and a mask
        broadcasts to ``(H, T, Tk)``. Empty sequences are legal.
    return_lse : bool, default False
        Whether to return the log-sum-exp too.
    out : ndarray, optional
        Array for the result, with its shape and the query's dtype; it may overlap an input.

    Returns
    -------
    output : ndarray, shape (..., H, Lq, Dv)
        In the query's dtype (float32 for integers). A query that sees nothing gets 0.
    lse : ndarray, shape (..., H, Lq)
        Natural logarithm of the sum of the exponentials of the scores, float32 (float64
        for float64); -inf for a query that sees nothing. Packed: ``(T, H)``. Only with
        `return_lse`.

    Raises
    ------
    DimensionMismatchError
        If shapes do not fit each other.
    InvalidMaskError
        If the mask does not broadcast, or is neither bool nor float.
    InvalidConfigError
        If an option is outside its domain.
    TypeError
        If an array does not hold real numbers.

    See Also
    --------
    merge_states : Combine results over disjoint sets of keys.
    attention_backward : The gradients.
    ruvector.MultiHeadAttention : The same for one memory of vectors.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
       Partitioning", 2023, arXiv:2307.08691.
    .. [2] O. Press, N. Smith, M. Lewis, "Train Short, Test Long: Attention with Linear
       Biases Enables Input Length Extrapolation", 2021, arXiv:2108.12409.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> query = rng.standard_normal((1, 8, 5, 64), dtype=np.float32)
    >>> memory = rng.standard_normal((1, 2, 7, 64), dtype=np.float32)
    >>> output, lse = ruvector.scaled_dot_product_attention(
    ...     query, memory, memory, is_causal=True, enable_gqa=True, return_lse=True
    ... )
    >>> output.shape, lse.shape
    ((1, 8, 5, 64), (1, 8, 5))
    >>> bool(np.allclose(output[0, 0, 0], memory[0, 0, 0]))  # the first sees one key
    True
    """
    call = Call(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        cu_seqlens_q,
        cu_seqlens_k,
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
    problem = call.problem
    destination = Output(
        out, call.shape, call.arrays[0].dtype, problem.query.dtype, problem.inputs()
    )
    lse = problem.new_lse() if return_lse else None
    problem.attend(call.inner(destination.work), lse)
    result = destination.deliver()
    return result if lse is None else (result, call.shaped_lse(lse))

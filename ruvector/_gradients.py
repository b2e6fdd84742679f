"""The gradient of ``scaled_dot_product_attention``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, cast, compute_dtype, contiguous_rows, finished, floating, view
from ._backward import Targets, differentiate, new_target
from ._options import Alignment, Window
from ._sdpa import Call
from .errors import DimensionMismatchError

__all__ = ["AttentionGradients", "attention_backward", "checked", "storage_gradients"]


class AttentionGradients(NamedTuple):
    """What :func:`attention_backward` returns: a gradient per argument, in its shape."""

    query: Array
    key: Array
    value: Array
    attn_mask: Array | None
    alibi_slopes: Array | None
    sink_logits: Array | None


def attention_backward(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    output: ArrayLike,
    lse: ArrayLike,
    grad_output: ArrayLike,
    *,
    grad_lse: ArrayLike | None = None,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
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
) -> AttentionGradients:
    r"""Compute the gradients of scaled dot-product attention, in memory of one tile.

    With `output` and `lse` saved from the forward call, these are the gradients of

    .. math:: \sum \mathrm{output} \cdot \mathrm{grad\_output} +
              \sum \mathrm{lse} \cdot \mathrm{grad\_lse}

    in every argument that has one. They are exact: the weights are recomputed from `lse`
    tile by tile and never stored.

    Parameters
    ----------
    query, key, value : array_like
        As in :func:`scaled_dot_product_attention`, as are all keywords but `grad_lse`.
    output : array_like, shape (..., H, Lq, Dv)
        What :func:`scaled_dot_product_attention` returned for the same arguments.
    lse : array_like, shape (..., H, Lq)
        The log-sum-exp that it returned with ``return_lse=True``.
    grad_output : array_like, shape (..., H, Lq, Dv)
        Gradient of the output.
    grad_lse : array_like, shape (..., H, Lq), optional
        Gradient of the log-sum-exp, where something depends on it.
    attn_mask, dropout_p, is_causal, scale, enable_gqa, causal_alignment, window, \
num_sink_tokens, sink_logits, softcap, alibi_slopes, cu_seqlens_q, cu_seqlens_k
        As in :func:`scaled_dot_product_attention`.

    Returns
    -------
    AttentionGradients
        A named tuple of `query`, `key`, `value`, `attn_mask`, `alibi_slopes` and
        `sink_logits`, each in shape and dtype of the argument; of arrays that were
        broadcast, summed. `attn_mask` is None without a float mask, the last two where they
        were not given.

    Raises
    ------
    DimensionMismatchError
        If shapes do not fit each other.
    InvalidMaskError, InvalidConfigError, TypeError
        As :func:`scaled_dot_product_attention`.

    See Also
    --------
    ruvector.Attention.compute_with_gradients : The same for the classes.
    ruvector.torch.scaled_dot_product_attention : A function that torch differentiates.

    Notes
    -----
    A hidden key has a gradient of exactly 0 from the rows that it is hidden from, and a
    query that sees nothing leaves no trace, even where either holds NaN. The results are
    not themselves differentiable: there is no double backward.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
       Partitioning", 2023, arXiv:2307.08691.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 1, 8, 16, 64), dtype=np.float32)
    >>> output, lse = ruvector.scaled_dot_product_attention(
    ...     query, key, value, is_causal=True, return_lse=True
    ... )
    >>> gradients = ruvector.attention_backward(
    ...     query, key, value, output, lse, np.ones_like(output), is_causal=True
    ... )
    >>> gradients.key.shape, gradients.attn_mask is None
    ((1, 8, 16, 64), True)
    >>> bool(np.allclose(gradients.value.sum(axis=2), 16, atol=1e-4))  # weights sum to 1
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
    result = storage_gradients(call, attn_mask, output, lse, grad_output, grad_lse)
    given = (
        *call.arrays,
        None if attn_mask is None else view(attn_mask, "attn_mask")[0],
        None if alibi_slopes is None else floating(alibi_slopes, "alibi_slopes"),
        None if sink_logits is None else floating(sink_logits, "sink_logits"),
    )
    gradients: list[Any] = [
        None if x is None or array is None else finished(x, x.shape, array.dtype)
        for x, array in zip(result, given, strict=True)
    ]
    return AttentionGradients(*gradients)


def storage_gradients(
    call: Call,
    attn_mask: object,
    output: object,
    lse: object,
    grad_output: object,
    grad_lse: object,
    wanted: tuple[bool, ...] = (True,) * 6,
) -> tuple[Array | None, ...]:
    """Compute the gradients that are wanted, in the caller's shapes.

    Parameters
    ----------
    call : Call
        The forward call.
    attn_mask : object
        The caller's mask.
    output, lse, grad_output, grad_lse : object
        As in :func:`attention_backward`.
    wanted : tuple of bool
        Which of the six fields of :class:`AttentionGradients` to compute.

    Returns
    -------
    tuple of ndarray or None
        In the problem's storage dtype, or where that is narrower perhaps in the compute
        dtype.
    """
    problem = call.problem
    storage = problem.query.dtype
    compute = compute_dtype(storage)
    state = checked(output, "output", call.shape)
    gradient = checked(grad_output, "grad_output", call.shape)
    state_lse = cast(checked(lse, "lse", call.shape[:-1]), compute)
    gradient_lse = None
    if grad_lse is not None:
        gradient_lse = cast(checked(grad_lse, "grad_lse", call.shape[:-1]), compute)
    targets = _new_targets(call, attn_mask, wanted)
    differentiate(
        problem,
        contiguous_rows(call.inner(state), storage),
        call.inner(state_lse),
        contiguous_rows(call.inner(gradient), storage),
        None if gradient_lse is None else call.inner(gradient_lse),
        targets,
    )
    shaped = [
        None if target is None else call.outer(target.reshape(array.shape))
        for target, array in zip(targets[:3], call.arrays, strict=True)
    ]
    mask = targets.mask
    if mask is not None:
        mask = mask.reshape(view(attn_mask, "attn_mask")[0].shape)
    return (*shaped, mask, targets.slopes, targets.sinks)


def _new_targets(call: Call, attn_mask: object, wanted: tuple[bool, ...]) -> Targets:
    problem = call.problem
    assert problem.value is not None
    arrays: list[Any] = [
        # In the caller's order of axes, so that what comes back is contiguous.
        call.outer(new_target(call.outer(x), call.outer(array).shape)) if want else None
        for x, array, want in zip(
            (problem.query, problem.key, problem.value), call.arrays, wanted[:3], strict=True
        )
    ]
    query, key, value = arrays
    mask = slopes = sinks = None
    if wanted[3] and problem.mask is not None and problem.mask.dtype != np.bool_:
        mask = new_target(problem.mask, view(attn_mask, "attn_mask")[0].shape)
    if wanted[4] and "slopes" in problem.options:
        slopes = np.empty_like(problem.options["slopes"])
    if wanted[5] and "sink_logits" in problem.options:
        sinks = np.empty_like(problem.options["sink_logits"])
    return Targets(query, key, value, mask, slopes, sinks)


def checked(x: object, name: str, shape: tuple[int, ...]) -> Array:
    """Return an array that must have a shape."""
    array = floating(x, name)
    if array.shape != shape:
        raise DimensionMismatchError(f"{name} must have shape {shape}, got {array.shape}")
    return array

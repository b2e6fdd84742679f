"""Attention over torch CPU tensors that torch differentiates.

Imported only when asked for, with ``import ruvector.torch``; the rest of the package does
not need torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import torch
except ImportError as error:
    raise ImportError("ruvector.torch needs torch: pip install torch") from error

from ._arrays import BFLOAT16, Array, Output
from ._gradients import storage_gradients
from ._options import Alignment, Window
from ._sdpa import Call

__all__ = ["scaled_dot_product_attention"]

_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.float16): torch.float16,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
    BFLOAT16: torch.bfloat16,
}


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal_alignment: Alignment = "top_left",
    window: Window | None = None,
    num_sink_tokens: int = 0,
    sink_logits: torch.Tensor | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Attend as :func:`ruvector.scaled_dot_product_attention`, with gradients for torch.

    Takes the place of ``torch.nn.functional.scaled_dot_product_attention`` on the CPU.
    Gradients flow to `query`, `key`, `value`, a float `attn_mask`, `alibi_slopes` and
    `sink_logits`, from the output and from the log-sum-exp. Tensors are read and written
    where they lie; forward and backward use memory of one tile beyond them.

    Parameters
    ----------
    query, key, value : Tensor
        On the CPU: float32, float64, float16 or bfloat16. Shapes as in
        :func:`ruvector.scaled_dot_product_attention`, as are all other arguments.
    attn_mask, sink_logits, alibi_slopes, cu_seqlens_q, cu_seqlens_k : Tensor, optional
        Tensors where they are given.
    dropout_p, is_causal, scale, enable_gqa, causal_alignment, window, num_sink_tokens, \
softcap, return_lse
        As in :func:`ruvector.scaled_dot_product_attention`.

    Returns
    -------
    output : Tensor
        In the query's dtype.
    lse : Tensor
        float32 (float64 for float64). Only with `return_lse`.

    Raises
    ------
    DimensionMismatchError, InvalidMaskError, InvalidConfigError
        As :func:`ruvector.scaled_dot_product_attention`.
    TypeError
        If an argument is no tensor of real numbers on the CPU.
    NotImplementedError
        By torch's backward, if a gradient is differentiated again: there is no double
        backward.
    RuntimeError
        By torch, inside the transforms of ``torch.func`` (vmap, grad and the like).

    See Also
    --------
    ruvector.attention_backward : The gradients as a function of arrays.

    Examples
    --------
    >>> import torch
    >>> import ruvector.torch
    >>> query = torch.randn(1, 8, 16, 64, requires_grad=True)
    >>> memory = torch.randn(1, 2, 100, 64, requires_grad=True)
    >>> output = ruvector.torch.scaled_dot_product_attention(
    ...     query, memory, memory, enable_gqa=True
    ... )
    >>> output.square().sum().backward()
    >>> memory.grad.shape
    torch.Size([1, 2, 100, 64])
    """
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "attn_mask": attn_mask,
        "alibi_slopes": alibi_slopes,
        "sink_logits": sink_logits,
    }
    for name, tensor in tensors.items():
        optional = name not in ("query", "key", "value")
        if not isinstance(tensor, torch.Tensor) and not (optional and tensor is None):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    options = {
        "dropout_p": dropout_p,
        "is_causal": is_causal,
        "scale": scale,
        "enable_gqa": enable_gqa,
        "causal_alignment": causal_alignment,
        "window": window,
        "num_sink_tokens": num_sink_tokens,
        "softcap": softcap,
        "cu_seqlens_q": cu_seqlens_q,
        "cu_seqlens_k": cu_seqlens_k,
    }
    # torch does not annotate apply.
    output, lse = _Attention.apply(options, *tensors.values())  # type: ignore[no-untyped-call]
    return (output, lse) if return_lse else output


def _call(options: dict[str, Any], tensors: tuple[Any, ...]) -> Call:
    query, key, value, attn_mask, alibi_slopes, sink_logits = tensors
    return Call(
        query,
        key,
        value,
        attn_mask,
        alibi_slopes=alibi_slopes,
        sink_logits=sink_logits,
        **options,
    )


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], *tensors: Any) -> Any:
        call = _call(options, tensors)
        problem, dtype = call.problem, call.arrays[0].dtype
        output = torch.empty(call.shape, dtype=_DTYPES[dtype])
        destination = Output(output, call.shape, dtype, problem.query.dtype, problem.inputs())
        lse = problem.new_lse()
        problem.attend(call.inner(destination.work), lse)
        destination.deliver()
        shaped = _tensor(call.shaped_lse(lse))
        ctx.options = options
        ctx.save_for_backward(*tensors, output, shaped)
        ctx.set_materialize_grads(False)
        return output, shaped

    @staticmethod
    def backward(ctx: Any, grad_output: Any, grad_lse: Any) -> Any:
        if grad_output is None and grad_lse is None:
            return (None,) * 7
        *tensors, output, lse = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        gradients = _Gradient.apply(  # type: ignore[no-untyped-call]
            ctx.options, ctx.needs_input_grad[1:], output, lse, grad_output, grad_lse, *tensors
        )
        return None, *gradients


class _Gradient(torch.autograd.Function):
    """The backward of `_Attention` as a function that refuses to be differentiated."""

    @staticmethod
    def forward(
        ctx: Any,
        options: dict[str, Any],
        wanted: tuple[bool, ...],
        output: torch.Tensor,
        lse: torch.Tensor,
        grad_output: torch.Tensor,
        grad_lse: torch.Tensor | None,
        *tensors: Any,
    ) -> Any:
        arrays = storage_gradients(
            _call(options, tensors), tensors[3], output, lse, grad_output, grad_lse, wanted
        )
        return tuple(
            None if array is None else _tensor(array).to(tensor.dtype)
            for array, tensor in zip(arrays, tensors, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            "double backward through ruvector.torch.scaled_dot_product_attention is "
            "unsupported: its gradients cannot be differentiated again"
        )

"""Backward: the gradients of dense attention, against torch's own backward."""

from __future__ import annotations

import functools

import numpy as np

import ruvector

from ..core import OURS, Case, Context, Curve, Row, Target
from ..run import present, sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

Shape = tuple[int, int, int, int]


def _flops(shape: Shape, causal: bool = False) -> float:
    """Count the five products that a gradient needs at least."""
    batch, heads, length, dim = shape
    pairs = length * (length + 1) / 2 if causal else length * length
    return 10.0 * batch * heads * pairs * dim


def _arrays(ctx: Context, shape: Shape) -> list[np.ndarray]:
    rng = ctx.rng
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


def _ours(arrays: list[np.ndarray], causal: bool) -> Side:
    query, key, value, grad = arrays
    output, lse = ruvector.scaled_dot_product_attention(
        query, key, value, is_causal=causal, return_lse=True
    )
    backward = functools.partial(
        ruvector.attention_backward, query, key, value, output, lse, grad, is_causal=causal
    )
    return Local(backward, lambda gradients: gradients[:3])


def _torch(ctx: Context, arrays: list[np.ndarray], causal: bool) -> Side:
    torch = ctx.peers.module("torch")
    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays[:3]]
    # The graph is kept, so that the backward alone is timed.
    output = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal)
    grad = torch.from_numpy(arrays[3])
    return Local(
        functools.partial(torch.autograd.grad, output, tensors, grad, retain_graph=True)
    )


def _build(shape: Shape, causal: bool, ctx: Context) -> Case:
    arrays = _arrays(ctx, shape)
    return Case(_ours(arrays, causal), {"torch": lambda: _torch(ctx, arrays, causal)})


def _row(shape: Shape, causal: bool = False, threads: int | None = None) -> Row:
    kind = "causal" if causal else "full"
    return Row(
        f"{kind} {shape}" + ("" if threads is None else " threaded"),
        functools.partial(_build, shape, causal),
        {"torch": Target(1.2, 1.5)},
        flops=_flops(shape, causal),
        threads=threads,
    )


def rows() -> list[Row]:
    """Full and causal, heads of 64 and of 128, one and two threads."""
    medium, wide = (1, 8, 2048, 64), (1, 8, 2048, 128)
    return [
        _row(medium),
        _row(medium, causal=True),
        _row(wide),
        _row(wide, causal=True),
        _row((1, 8, 512, 64), causal=True),
        _row(medium, threads=2),
        _row(medium, causal=True, threads=2),
    ]


def _rate_by_length(ctx: Context, length: int) -> dict[str, float]:
    shape = (1, 2, length, 64)
    arrays = _arrays(ctx, shape)
    sides = present(
        {OURS: lambda: _ours(arrays, False), "torch": lambda: _torch(ctx, arrays, False)}
    )
    timings = sample(ctx, sides)
    return {name: _flops(shape) / timing.median / 1e9 for name, timing in timings.items()}


def curves() -> list[Curve]:
    """GF/s by length."""
    return [
        Curve(
            "backward by length", "keys", "GF/s", "flat",
            (512, 1024, 2048, 4096, 8192), (512, 1024), _rate_by_length,
        ),
    ]  # fmt: skip

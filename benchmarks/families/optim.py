"""Optimisers: AdamW, Adam and SGD against torch's fused ones, clipping by the norm."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ruvector import training

from ..core import Case, Context, Row, Target
from ..sides import Local, Side

__all__ = ["rows"]

Shapes = tuple[tuple[int, ...], ...]

_MILLION: Shapes = ((1_000_000,),)
_TWENTY: Shapes = ((20_000_000,),)
# An adapter of rank 384, and a stack of layers: many arrays, most of them small.
_ADAPTER: Shapes = ((384, 384), (384, 384))
_LAYERS: Shapes = ((384, 384), (384,), (384, 96), (96,)) * 24

_OPTIMIZERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "AdamW": (training.AdamWOptimizer, {}, {}),
    "Adam, AMSGrad": (training.AdamOptimizer, {"amsgrad": True}, {"amsgrad": True}),
    "SGD, momentum": (training.SGDOptimizer, {"momentum": 0.9}, {"momentum": 0.9}),
}
_RATE = 1e-4


def _arrays(ctx: Context, shapes: Shapes) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = ctx.rng
    made = [
        [rng.standard_normal(shape, dtype=np.float32) for shape in shapes] for _ in range(2)
    ]
    return made[0], made[1]


def _ours(ctx: Context, name: str, shapes: Shapes) -> Side:
    params, gradients = _arrays(ctx, shapes)
    kind, options, _ = _OPTIMIZERS[name]
    optimizer = kind(_RATE, **options)
    return Local(functools.partial(optimizer.step, gradients, params=params))


def _torch(ctx: Context, name: str, shapes: Shapes, fused: bool) -> Side:
    torch = ctx.peers.module("torch")
    params, gradients = _arrays(ctx, shapes)
    tensors = [torch.nn.Parameter(torch.from_numpy(p).clone()) for p in params]
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.from_numpy(gradient).clone()
    kind = getattr(torch.optim, name.split(",")[0])
    how = {"fused": True} if fused else {"foreach": True}
    optimizer = kind(tensors, lr=_RATE, **_OPTIMIZERS[name][2], **how)

    def step() -> Any:
        optimizer.step()
        return tensors

    return Local(step)


def _case(name: str, shapes: Shapes, fused: bool, ctx: Context) -> Case:
    # One peer a row: a third side would drive the other two out of the shared cache.
    peer = "torch fused" if fused else "torch foreach"
    return Case(_ours(ctx, name, shapes), {peer: lambda: _torch(ctx, name, shapes, fused)})


def _row(
    name: str,
    shapes: Shapes,
    size: str,
    target: Target,
    *,
    arrays: int = 7,
    fused: bool = True,
    threads: int | None = None,
) -> Row:
    """Return a row; ``arrays`` are read or written once a step."""
    numbers = sum(int(np.prod(shape)) for shape in shapes)
    return Row(
        f"{name}, {size}" + ("" if threads is None else " threaded"),
        functools.partial(_case, name, shapes, fused),
        {"torch fused" if fused else "torch foreach": target},
        traffic=4.0 * arrays * numbers,
        threads=threads,
    )


def _norm_case(ctx: Context) -> Case:
    torch = ctx.peers.module("torch")
    gradients, _ = _arrays(ctx, _LAYERS)
    tensors = [torch.nn.Parameter(torch.from_numpy(g)) for g in gradients]
    for tensor in tensors:
        tensor.grad = tensor.detach().clone()
    # A norm that is not exceeded, so that every call measures the same.
    limit = 1e6
    return Case(
        Local(lambda: np.float32(training.clip_grad_norm(gradients, limit))),
        {"torch": lambda: Local(lambda: torch.nn.utils.clip_grad_norm_(tensors, limit))},
    )


def rows() -> list[Row]:
    """One array of a million and of twenty million, many arrays, one thread and two."""
    must = Target(0.95, 1.1)
    return [
        _row("AdamW", _MILLION, "1 M", must),
        _row("AdamW", _TWENTY, "20 M", must),
        _row("AdamW", _MILLION, "1 M", must, threads=2),
        _row("AdamW", _TWENTY, "20 M", must, threads=2),
        _row("AdamW", _ADAPTER, "2 of 384 x 384", Target()),
        _row("AdamW", _LAYERS, "96 arrays, 4.4 M", Target()),
        _row("AdamW", _LAYERS, "96 arrays, 4.4 M, foreach", Target(), fused=False),
        _row("Adam, AMSGrad", _MILLION, "1 M", Target(), arrays=9),
        _row("SGD, momentum", _MILLION, "1 M", Target(), arrays=5),
        _row("SGD, momentum", _TWENTY, "20 M", Target(), arrays=5),
        Row("clip_grad_norm, 96 arrays, 4.4 M", _norm_case, {"torch": Target()}),
    ]

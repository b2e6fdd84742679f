"""Attention in the Poincare ball: against the npm package, geoopt and NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import ruvector
from ruvector import hyperbolic

from ..core import Case, Context, Row, Target
from ..peers import NPM
from ..sides import Local, Side

__all__ = ["rows"]


def _points(ctx: Context, *shapes: tuple[int, ...], norm: float) -> list[np.ndarray]:
    """Points of one norm, far enough from the boundary for geoopt's float32."""
    rng = ctx.rng
    arrays = [rng.standard_normal(shape) for shape in shapes]
    return [
        (norm * x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
        for x in arrays
    ]


def _npm_case(aggregation: str, dim: int, keys: int, ctx: Context) -> Case:
    arrays = _points(ctx, (dim,), (keys, dim), (keys, dim), norm=0.9)
    model = ruvector.HyperbolicAttention(dim, aggregation=aggregation)
    call = {"class": "HyperbolicAttention", "args": [dim, 1.0], "method": "compute"}
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {NPM: lambda: ctx.peers.npm().setup(arrays, **call)},
    )


def _numpy(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Float32 throughout, and wrong for close points: the shortest way to write it."""
    near, far, inside = (1 - np.einsum("...d,...d->...", x, x) for x in (query, keys, values))
    square = (2 - near)[..., None] - far - 2 * (query @ keys.T)
    square = np.maximum(square, 0)
    scores = -2 * np.arcsinh(np.sqrt(square / (near[..., None] * far)))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights *= 2 / inside
    total = weights.sum(axis=-1, keepdims=True)
    plain = (weights * (inside / 2)).sum(axis=-1, keepdims=True)
    r = weights @ values / (total - plain)
    return np.asarray(r / (1 + np.sqrt(1 - (r * r).sum(axis=-1, keepdims=True))))


def _geoopt(
    ctx: Context, arrays: list[np.ndarray], grad_output: np.ndarray | None = None
) -> Side:
    torch = ctx.peers.module("torch")
    ctx.peers.module("geoopt")
    geometry = ctx.peers.module("geoopt.manifolds.stereographic.math")
    query, keys, values = tensors = [
        torch.from_numpy(x).requires_grad_(grad_output is not None) for x in arrays
    ]
    curvature = torch.tensor(-1.0)

    def attend() -> Any:
        distance = geometry.dist(query[..., None, :], keys, k=curvature)
        weights = torch.softmax(-distance, dim=-1)
        shape = (*weights.shape, values.shape[-1])
        return geometry.weighted_midpoint(
            values.expand(shape), weights, reducedim=[-2], k=curvature
        )

    if grad_output is None:
        return Local(attend)
    given = torch.from_numpy(grad_output)
    return Local(lambda: torch.autograd.grad(attend(), tensors, given))


def _attention(queries: int | None, keys: int, dim: int, ctx: Context) -> Case:
    shape = (dim,) if queries is None else (queries, dim)
    arrays = _points(ctx, shape, (keys, dim), (keys, dim), norm=0.5)
    model = ruvector.HyperbolicAttention(dim)
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {
            "geoopt": lambda: _geoopt(ctx, arrays),
            "NumPy": lambda: Local(functools.partial(_numpy, *arrays)),
        },
    )


def _gradient(queries: int, keys: int, dim: int, ctx: Context) -> Case:
    """Measure result and gradients together, as nothing of the forward is kept."""
    *arrays, grad = _points(
        ctx, (queries, dim), (keys, dim), (keys, dim), (queries, dim), norm=0.5
    )
    model = ruvector.HyperbolicAttention(dim)
    return Case(
        Local(
            functools.partial(model.compute_with_gradients, *arrays, grad),
            lambda result: [result[1][name] for name in ("query", "keys", "values")],
        ),
        {"geoopt": lambda: _geoopt(ctx, arrays, grad)},
    )


def _map(name: str, peer: str, dim: int, ctx: Context) -> Case:
    x, y = _points(ctx, (10_000, dim), (10_000, dim), norm=0.5)

    def geoopt() -> Side:
        torch = ctx.peers.module("torch")
        ctx.peers.module("geoopt")
        geometry = ctx.peers.module("geoopt.manifolds.stereographic.math")
        function: Callable[..., Any] = getattr(geometry, peer)
        pair = torch.from_numpy(x), torch.from_numpy(y)
        return Local(functools.partial(function, *pair, k=torch.tensor(-1.0)))

    return Case(
        Local(functools.partial(getattr(hyperbolic, name), x, y, 1.0)), {"geoopt": geoopt}
    )


def rows() -> list[Row]:
    """One query over a memory, several, and the maps on their own."""
    return [
        Row(
            "HyperbolicAttention(384), 1000 keys",
            functools.partial(_npm_case, "midpoint", 384, 1000),
            {NPM: Target(300, 1000)},
            traffic=2.0 * 1000 * 384 * 4,
            # The other side approaches the Frechet mean, which is another point near by.
            tolerance=1e-2,
        ),
        Row(
            "HyperbolicAttention(384, aggregation='frechet'), 1000 keys",
            functools.partial(_npm_case, "frechet", 384, 1000),
            {NPM: Target()},
            # The other side stops before it has arrived.
            tolerance=1e-3,
        ),
        Row(
            "HyperbolicAttention(64), 10 000 keys",
            functools.partial(_attention, None, 10_000, 64),
            {"geoopt": Target(2.5, 5)},
            traffic=2.0 * 10_000 * 64 * 4,
        ),
        Row(
            "HyperbolicAttention(64), 256 queries, 2000 keys",
            functools.partial(_attention, 256, 2000, 64),
            flops=4.0 * 256 * 2000 * 64,
        ),
        Row(
            "HyperbolicAttention(64).compute_with_gradients, 64 queries, 1000 keys",
            functools.partial(_gradient, 64, 1000, 64),
            flops=18.0 * 64 * 1000 * 64,
        ),
        *(
            Row(
                f"hyperbolic.{ours}, 10 000 pairs of 64",
                functools.partial(_map, ours, theirs, 64),
            )
            for ours, theirs in (
                ("poincare_distance", "dist"),
                ("mobius_add", "mobius_add"),
                ("exp_map", "expmap"),
                ("log_map", "logmap"),
            )
        ),
    ]

"""Dual-space attention: against NumPy, and in time alone against the npm package."""

from __future__ import annotations

import functools
import math

import numpy as np

import ruvector

from ..core import Case, Context, Row, Target
from ..peers import NPM
from ..sides import Local

__all__ = ["rows"]

_DIM, _HEADS, _WEIGHT = 384, 8, 0.5


def _arrays(ctx: Context, queries: int | None, keys: int) -> list[np.ndarray]:
    rng = ctx.rng
    shapes = ((_DIM,) if queries is None else (queries, _DIM), (keys, _DIM), (keys, _DIM))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    # Of unit norm, as embeddings are.
    return [(x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32) for x in arrays]


def _by_head(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), _HEADS, -1).swapaxes(0, 1)


def _exp0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    point = np.tanh(norm) * x / norm
    return point, 1 - (point * point).sum(axis=-1)


def _numpy(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Float32 throughout, and wrong for close points: the shortest way to write it."""
    half = _DIM // 2
    q, k, v = (_by_head(np.atleast_2d(x)[:, :half]) for x in (query, keys, values))
    (x, a), (y, b), (z, c) = (
        _exp0(_by_head(np.atleast_2d(u)[:, half:])) for u in (query, keys, values)
    )
    square = (2 - a)[..., None] - b[:, None] - 2 * (x @ y.swapaxes(1, 2))
    root = np.sqrt(np.maximum(square, 0) / (a[..., None] * b[:, None]))
    scores = (1 - _WEIGHT) / math.sqrt(half // _HEADS) * (q @ k.swapaxes(1, 2))
    scores -= 2 * _WEIGHT * np.arcsinh(root)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    r = weights @ (2 * z / c[..., None]) / (weights @ (2 / c - 1)[..., None])
    m = r / (1 + np.sqrt(1 - (r * r).sum(axis=-1, keepdims=True)))
    norm = np.linalg.norm(m, axis=-1, keepdims=True)
    parts = weights @ v, np.arctanh(norm) * m / norm
    joined = [part.swapaxes(0, 1).reshape(-1, half) for part in parts]
    return np.asarray(np.concatenate(joined, axis=1).reshape(query.shape))


def _case(queries: int | None, keys: int, ctx: Context) -> Case:
    arrays = _arrays(ctx, queries, keys)
    model = ruvector.DualSpaceAttention.simple_fused(_DIM, _HEADS, 1.0, _WEIGHT)
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {"NumPy": lambda: Local(functools.partial(_numpy, *arrays))},
    )


def _npm_case(keys: int, ctx: Context) -> Case:
    arrays = _arrays(ctx, None, keys)
    model = ruvector.DualSpaceAttention.simple_fused(_DIM, 1, 1.0, _WEIGHT)
    call = {
        "class": "DualSpaceAttention",
        "factory": "simple",
        "args": [_DIM, 1.0],
        "method": "compute",
    }
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {NPM: lambda: ctx.peers.npm().setup(arrays, **call)},
    )


def rows() -> list[Row]:
    """One query over a memory, and several."""
    name = f"DualSpaceAttention({_DIM}, {_HEADS} heads)"
    return [
        *(
            Row(
                f"{name}, {keys} keys",
                functools.partial(_case, None, keys),
                {"NumPy": Target(1)},
                traffic=2.0 * keys * _DIM * 4,
            )
            for keys in (1000, 10_000)
        ),
        Row(
            f"{name}, 256 queries, 2000 keys",
            functools.partial(_case, 256, 2000),
            {"NumPy": Target(1)},
            flops=4.0 * 256 * 2000 * _DIM,
        ),
        Row(
            f"DualSpaceAttention({_DIM}, 1 head), 1000 keys, in time alone",
            functools.partial(_npm_case, 1000),
            {NPM: Target()},
            # The other side projects the vectors at random first: results have nothing in
            # common but their shape.
            tolerance=math.inf,
        ),
    ]

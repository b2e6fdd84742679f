"""Attention with rotary positions: against npm, torch, NumPy and attention without them."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

import ruvector

from ..core import OURS, Case, Context, Row, Target
from ..peers import NPM
from ..sides import Local, Side

__all__ = ["rows"]

_DIM, _HEADS = 512, 8


def _arrays(ctx: Context, queries: int | None, keys: int, dim: int) -> list[np.ndarray]:
    rng = ctx.rng
    shapes = ((dim,) if queries is None else (queries, dim), (keys, dim), (keys, dim))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def _model(keys: int, dim: int, heads: int) -> ruvector.GraphRoPEAttention:
    return ruvector.GraphRoPEAttention(dim=dim, max_position=keys, num_heads=heads)


def _npm_case(keys: int, ctx: Context) -> Case:
    arrays = _arrays(ctx, None, keys, 384)
    call = {
        "class": "GraphRoPeAttention",
        "factory": "simple",
        "args": [384, keys],
        "method": "compute",
    }
    return Case(
        Local(functools.partial(_model(keys, 384, 1).compute, *arrays)),
        {NPM: lambda: ctx.peers.npm().setup(arrays, **call)},
    )


def _angles(keys: int, width: int) -> np.ndarray:
    speeds = 10000.0 ** -(np.arange(0, width, 2) / width)
    return np.multiply.outer(np.arange(keys), speeds)


def _numpy(arrays: list[np.ndarray]) -> Side:
    """One query at 0, which is not turned; tables made before, keys turned as a whole."""
    query, keys, values = arrays
    width = _DIM // _HEADS
    angles = _angles(len(keys), width)
    cos, sin = (np.float32(f(angles))[:, np.newaxis] for f in (np.cos, np.sin))

    def call() -> np.ndarray:
        rows = keys.reshape(-1, _HEADS, width)
        a, b = rows[..., : width // 2], rows[..., width // 2 :]
        turned = np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
        scores = turned.transpose(1, 0, 2) @ query.reshape(_HEADS, width, 1) / math.sqrt(width)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        by_head = values.reshape(-1, _HEADS, width).transpose(1, 0, 2)
        return np.asarray(weights.swapaxes(1, 2) @ by_head).ravel()

    return Local(call)


def _torch(ctx: Context, arrays: list[np.ndarray], positions: np.ndarray) -> Side:
    """As Hugging Face's models do it, tables made before."""
    torch = ctx.peers.module("torch")
    width = _DIM // _HEADS
    angles = np.tile(_angles(len(arrays[1]), width), 2).astype(np.float32)
    cos, sin = torch.from_numpy(np.cos(angles)), torch.from_numpy(np.sin(angles))
    query, keys, values = (
        torch.from_numpy(np.atleast_2d(x)).reshape(1, -1, _HEADS, width).transpose(1, 2)
        for x in arrays
    )
    places = torch.from_numpy(positions)

    def turned(x: Any, cos: Any, sin: Any) -> Any:
        half = torch.cat((-x[..., width // 2 :], x[..., : width // 2]), dim=-1)
        return x * cos + half * sin

    def call() -> Any:
        with torch.inference_mode():
            q, k = turned(query, cos[places], sin[places]), turned(keys, cos, sin)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, values)
            return out.transpose(1, 2).reshape(arrays[0].shape)

    return Local(call)


def _case(queries: int | None, keys: int, ctx: Context) -> Case:
    arrays = _arrays(ctx, queries, keys, _DIM)
    places = np.arange(queries or 1) if queries else np.zeros(1, np.int64)
    own = places if queries else 0
    model = _model(keys, _DIM, _HEADS)
    attend = functools.partial(model.compute_with_positions, *arrays, own, np.arange(keys))
    peers = {"torch": lambda: _torch(ctx, arrays, places)}
    if queries is None:
        peers["NumPy"] = lambda: _numpy(arrays)
    return Case(Local(attend), peers)


def _overhead(queries: int | None, keys: int, dtype: str, ctx: Context) -> Case:
    arrays = [x.astype(dtype) for x in _arrays(ctx, queries, keys, _DIM)]
    plain = ruvector.MultiHeadAttention(_DIM, _HEADS)
    return Case(
        Local(functools.partial(_model(keys, _DIM, _HEADS).compute, *arrays)),
        {f"{OURS}, plain": lambda: Local(functools.partial(plain.compute, *arrays))},
    )


def rows() -> list[Row]:
    """One query over a memory, several, and what turning costs."""
    name = f"GraphRoPEAttention({_DIM}, {_HEADS} heads)"
    return [
        *(
            Row(
                f"GraphRoPEAttention(384), {keys} keys",
                functools.partial(_npm_case, keys),
                {NPM: Target(1)},
                traffic=2.0 * keys * 384 * 4,
            )
            for keys in (10, 100, 1000)
        ),
        Row(
            f"{name}, 10 000 keys",
            functools.partial(_case, None, 10_000),
            {"torch": Target(1), "NumPy": Target(1)},
            traffic=2.0 * 10_000 * _DIM * 4,
        ),
        Row(
            f"{name}, 2048 queries, 2048 keys",
            functools.partial(_case, 2048, 2048),
            {"torch": Target(1)},
            flops=4.0 * 2048 * 2048 * _DIM,
        ),
        *(
            Row(
                f"{name}, {what}, beside attention without positions",
                functools.partial(_overhead, queries, keys, dtype),
                {f"{OURS}, plain": Target(0.8, 0.95)},
                # Another function: only the times compare.
                tolerance=math.inf,
            )
            for what, queries, keys, dtype in (
                ("10 000 keys", None, 10_000, "float32"),
                ("2048 queries, 2048 keys", 2048, 2048, "float32"),
                ("2048 queries, 2048 keys, float16", 2048, 2048, "float16"),
            )
        ),
    ]

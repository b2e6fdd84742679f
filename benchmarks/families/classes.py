"""The class API over one memory: against the npm package, NumPy and ruvector-attention."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import ruvector

from ..core import OURS, Case, Context, Curve, Row, Target
from ..peers import NPM, UPSTREAM
from ..run import sample
from ..sides import Local, Side
from ..timing import fastest

__all__ = ["curves", "rows"]

_DIM, _HEADS = 384, 8
_WINDOW, _GLOBAL = 256, 16


def _arrays(ctx: Context, keys: int) -> list[np.ndarray]:
    rng = ctx.rng
    shapes = ((_DIM,), (keys, _DIM), (keys, _DIM))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def _numpy_single(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    scores = keys @ query
    scores *= _DIM**-0.5
    scores -= scores.max()
    np.exp(scores, out=scores)
    scores /= scores.sum()
    return np.asarray(scores @ values)


def _softmax_heads(scores: np.ndarray) -> np.ndarray:
    scores *= (_DIM // _HEADS) ** -0.5
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    return scores


def _numpy_heads_einsum(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    shape = (-1, _HEADS, _DIM // _HEADS)
    scores = np.einsum("nhd,hd->nh", keys.reshape(shape), query.reshape(shape[1:]))
    out = np.einsum("nh,nhd->hd", _softmax_heads(scores), values.reshape(shape))
    return np.asarray(out).ravel()


def _numpy_heads_matmul(query: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    shape = (-1, _HEADS, _DIM // _HEADS)
    by_head = keys.reshape(shape).transpose(1, 0, 2)
    scores = (by_head @ query.reshape(shape[1:])[:, :, None])[:, :, 0].T
    weights = _softmax_heads(scores).T[:, None, :]
    return np.asarray(weights @ values.reshape(shape).transpose(1, 0, 2)).ravel()


def _numpy(forms: list[Callable[..., np.ndarray]], arrays: list[np.ndarray]) -> Side:
    form = fastest(forms, lambda form: functools.partial(form, *arrays))
    return Local(functools.partial(form, *arrays))


def _case(name: str, args: tuple[int, ...], keys: int, ctx: Context) -> Case:
    """Build our class, npm's class of the same name and, for softmax over all, NumPy."""
    arrays = _arrays(ctx, keys)
    model = getattr(ruvector, name)(*args)
    call = {"class": name, "args": list(args), "method": "compute"}
    peers: dict[str, Callable[[], Side]] = {
        NPM: lambda: ctx.peers.npm().setup(arrays, **call),
    }
    if name == "MultiHeadAttention":
        peers["NumPy"] = lambda: _numpy([_numpy_heads_einsum, _numpy_heads_matmul], arrays)
    elif name != "LocalGlobalAttention":
        peers["NumPy"] = lambda: _numpy([_numpy_single], arrays)
    return Case(Local(functools.partial(model.compute, *arrays)), peers)


def _upstream_case(keys: int, ctx: Context) -> Case:
    query, memory, _ = _arrays(ctx, keys)
    model = ruvector.DotProductAttention(_DIM)
    call = functools.partial(model.compute, query, memory, memory, return_weights=True)
    return Case(
        Local(call),
        {UPSTREAM: lambda: ctx.peers.upstream().setup([query, memory], function="attend")},
    )


def _row(name: str, args: tuple[int, ...], keys: int, **targets: Target) -> Row:
    return Row(
        f"{name}({', '.join(map(str, args))}), {keys} keys",
        functools.partial(_case, name, args, keys),
        {{"npm": NPM, "numpy": "NumPy"}[peer]: target for peer, target in targets.items()},
        traffic=2.0 * keys * _DIM * 4 if name != "LocalGlobalAttention" else 0.0,
    )


def rows() -> list[Row]:
    """Dense classes from 10 to 10 000 keys."""
    multi_head = {
        10: Target(6, 15), 100: Target(15, 40), 1000: Target(30, 60), 10_000: Target(25, 50)
    }  # fmt: skip
    upstream = {
        10: Target(5, 8), 100: Target(8, 15), 1000: Target(10, 16), 10_000: Target(8, 12)
    }  # fmt: skip
    single = {"npm": Target(25, 50), "numpy": Target(1)}
    local = (_DIM, _WINDOW, _GLOBAL)
    return [
        *(
            _row("MultiHeadAttention", (_DIM, _HEADS), keys, npm=target)
            for keys, target in multi_head.items()
        ),
        _row("FlashAttention", (_DIM, 64), 1000, **single),
        _row("DotProductAttention", (_DIM,), 1000, **single),
        *(
            Row(
                f"DotProductAttention({_DIM}) with weights, {keys} keys",
                functools.partial(_upstream_case, keys),
                {UPSTREAM: target},
                traffic=keys * _DIM * 4.0,
            )
            for keys, target in upstream.items()
        ),
        *(_row("LocalGlobalAttention", local, keys) for keys in (1000, 10_000)),
    ]


def _local_global_by_length(ctx: Context, length: int) -> dict[str, float]:
    """Time per token with as many queries as keys, next to attention over everything."""
    dim = 64
    memory = ctx.rng.standard_normal((length, dim), dtype=np.float32)
    models: dict[str, Any] = {OURS: ruvector.LocalGlobalAttention(dim, _WINDOW, _GLOBAL)}
    if length <= 16_384:
        models["DotProductAttention"] = ruvector.DotProductAttention(dim)
    sides: dict[str, Side] = {
        name: Local(functools.partial(model.compute, memory, memory, memory))
        for name, model in models.items()
    }
    timings = sample(ctx, sides)
    return {name: timing.median / length * 1e6 for name, timing in timings.items()}


def curves() -> list[Curve]:
    """Cost of a token by length."""
    return [
        Curve(
            f"LocalGlobalAttention(64, {_WINDOW}, {_GLOBAL}) by length", "queries = keys",
            "us per token", "flat, where DotProductAttention grows",
            (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536), (1024, 2048, 4096),
            _local_global_by_length,
        )
    ]  # fmt: skip

"""Mixtures of experts: against the npm package on one query, and NumPy on many."""

from __future__ import annotations

import functools

import numpy as np

import ruvector

from ..core import Case, Context, Row
from ..peers import NPM
from ..sides import Local

__all__ = ["rows"]

_DIM = 384


def _npm_case(experts: int, top_k: int, keys: int, ctx: Context) -> Case:
    """The experts of the two sides are other functions: with values that are all alike every
    one of them returns that value, which is what the check compares.
    """
    rng = ctx.rng
    query = rng.standard_normal(_DIM, dtype=np.float32)
    memory = rng.standard_normal((keys, _DIM), dtype=np.float32)
    value = rng.standard_normal(_DIM, dtype=np.float32)
    values = np.tile(0.5 * value / np.linalg.norm(value), (keys, 1))
    arrays = [query, memory, values]
    model = ruvector.MoEAttention.simple(_DIM, experts, top_k)
    call = {
        "class": "MoEAttention",
        "factory": "simple",
        "args": [_DIM, experts, top_k],
        "method": "compute",
    }
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {NPM: lambda: ctx.peers.npm().setup(arrays, **call)},
    )


def _numpy(
    model: ruvector.MoEAttention, query: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Standard experts, one after the other, over the queries that are theirs."""
    weights = model.parameters()
    logits = query @ weights["router.weight"].T
    top = np.argpartition(-logits, model.top_k - 1, axis=1)[:, : model.top_k]
    share = np.take_along_axis(logits, top, axis=1)
    share = np.exp(share - share.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    out = np.zeros((len(query), values.shape[1]), np.float32)
    for expert in range(model.num_experts):
        rows, place = np.nonzero(top == expert)
        q = query[rows] @ weights[f"experts.{expert}.query.weight"].T
        scores = q @ weights[f"experts.{expert}.key.weight"] @ keys.T
        scores *= _DIM**-0.5
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        out[rows] += share[rows, place, np.newaxis] * (scores @ values)
    return out


def _numpy_case(experts: int, top_k: int, queries: int, keys: int, ctx: Context) -> Case:
    rng = ctx.rng
    shapes = ((queries, _DIM), (keys, _DIM), (keys, _DIM))
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    model = ruvector.MoEAttention(
        dim=_DIM, num_experts=experts, top_k=top_k, expert_types=["standard"] * experts
    )
    return Case(
        Local(functools.partial(model.compute, *arrays)),
        {"NumPy": lambda: Local(functools.partial(_numpy, model, *arrays))},
    )


def rows() -> list[Row]:
    """One query from 10 to 10 000 keys, by the two experts that are picked and by all four."""
    queries, keys, top_k = 2000, 2000, 2
    return [
        *(
            Row(
                f"MoEAttention({_DIM}, {experts}, top {top_k}), {keys} keys",
                functools.partial(_npm_case, experts, top_k, keys),
            )
            for experts, top_k in ((4, 2), (4, 4))
            for keys in (10, 100, 1000, 10_000)
        ),
        Row(
            f"MoEAttention({_DIM}, 8 standard, top {top_k}), {queries} queries and keys",
            functools.partial(_numpy_case, 8, top_k, queries, keys),
            flops=4.0 * top_k * queries * (keys + _DIM) * _DIM,
            tolerance=1e-3,
        ),
    ]

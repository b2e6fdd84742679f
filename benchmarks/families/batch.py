"""Ragged batches: memories of many lengths, against padding them for torch."""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

import ruvector
from ruvector.batch import BatchProcessor, parallel_attention_compute

from ..core import OURS, Case, Context, Row, Target
from ..sides import Local, Side

__all__ = ["rows"]

Memories = list[np.ndarray]

_COUNT, _SHORTEST, _LONGEST = 1000, 10, 500


def _memories(ctx: Context, dim: int) -> tuple[np.ndarray, Memories, Memories]:
    rng = ctx.rng
    lengths = rng.integers(_SHORTEST, _LONGEST + 1, _COUNT)
    keys, values = (
        [rng.standard_normal((n, dim), dtype=np.float32) for n in lengths] for _ in range(2)
    )
    return rng.standard_normal((_COUNT, dim), dtype=np.float32), keys, values


def _traffic(dim: int) -> float:
    return 4.0 * dim * _COUNT * (_SHORTEST + _LONGEST)


def _padded(arrays: Memories) -> np.ndarray:
    whole = np.zeros((len(arrays), max(map(len, arrays)), arrays[0].shape[1]), np.float32)
    for row, array in zip(whole, arrays, strict=True):
        row[: len(array)] = array
    return whole


def _torch(
    ctx: Context, queries: np.ndarray, keys: Memories, values: Memories, pads: bool
) -> Side:
    torch = ctx.peers.module("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    query = torch.from_numpy(queries[:, np.newaxis])
    ends = np.array([len(k) for k in keys])
    mask = np.arange(ends.max()) < ends[:, np.newaxis]

    def tensors() -> tuple[Any, ...]:
        return tuple(torch.from_numpy(_padded(x)) for x in (keys, values))

    ready = () if pads else tensors()
    visible = torch.from_numpy(mask[:, np.newaxis])

    def forward() -> Any:
        with torch.inference_mode():
            return attend(query, *(ready or tensors()), attn_mask=visible)[:, 0]

    return Local(forward)


def _one_by_one(queries: np.ndarray, keys: Memories, values: Memories) -> Side:
    compute = ruvector.DotProductAttention(queries.shape[1]).compute

    def loop() -> Any:
        return [compute(q, k, v) for q, k, v in zip(queries, keys, values, strict=True)]

    return Local(loop, np.stack)


def _against_torch(dim: int, pads: bool, ctx: Context) -> Case:
    arrays = _memories(ctx, dim)
    call = functools.partial(parallel_attention_compute, "dot-product", *arrays)
    peers = {"torch": lambda: _torch(ctx, *arrays, pads)}
    if not pads:
        peers[f"{OURS}, one by one"] = lambda: _one_by_one(*arrays)
    return Case(Local(call, np.stack), peers)


def _against_one_worker(name: str, fields: dict[str, Any], ctx: Context) -> Case:
    arrays = _memories(ctx, 64)

    def call(workers: int) -> Any:
        return parallel_attention_compute(name, *arrays, workers, **fields)

    return Case(
        Local(functools.partial(call, 2), np.stack),
        {f"{OURS}, 1 worker": lambda: Local(functools.partial(call, 1), np.stack)},
    )


def _stream(prefetch: bool, ctx: Context) -> Any:
    arrays = _memories(ctx, 64)
    batches = [tuple(x[start : start + 100] for x in arrays) for start in range(0, _COUNT, 100)]

    def source() -> Any:
        for batch in batches:
            time.sleep(1e-3)
            yield batch

    def run() -> Any:
        with BatchProcessor(100, prefetch=prefetch) as processor:
            return [out for outputs in processor.process_stream(source()) for out in outputs]

    return run


def _prefetched(ctx: Context) -> Case:
    return Case(
        Local(_stream(True, ctx), np.stack),
        {f"{OURS}, no prefetch": lambda: Local(_stream(False, ctx), np.stack)},
    )


def rows() -> list[Row]:
    """Memories as they lie against padded ones, and two workers against one."""
    described = f"{_COUNT} memories of {_SHORTEST} to {_LONGEST} keys"
    return [
        *(
            Row(
                f"{described} of {dim}" + (", padding timed as well" if pads else ""),
                functools.partial(_against_torch, dim, pads),
                {"torch": Target()},
                traffic=_traffic(dim),
            )
            for dim in (64, 384)
            for pads in (False, True)
        ),
        *(
            Row(
                f"{name}, {described} of 64 threaded",
                functools.partial(_against_one_worker, name, fields),
                {f"{OURS}, 1 worker": Target()},
                threads=2,
            )
            for name, fields in (
                ("dot-product", {}),
                ("hyperbolic", {}),
                ("linear", {"num_features": 64}),
            )
        ),
        Row(
            "stream of 10 batches of 100 memories, each 1 ms to wait for",
            _prefetched,
            {f"{OURS}, no prefetch": Target()},
        ),
    ]

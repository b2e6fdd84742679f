"""Decoding: one query of 6 heads of 64 over many keys, limited by memory bandwidth."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import ruvector
from ruvector.stream import KVCache

from ..core import OURS, Case, Context, Curve, Row, Target, UnavailableError
from ..machine import available_memory
from ..onnx_peer import attention as onnx_attention
from ..peers import equal_threads
from ..run import present, sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

_HEADS, _DIM = 6, 64


def _traffic(keys: int) -> float:
    return 2.0 * keys * _HEADS * _DIM * 4


def _arrays(ctx: Context, keys: int, interleaved: bool) -> list[np.ndarray]:
    if 3 * _traffic(keys) > available_memory():
        raise UnavailableError(f"{3 * _traffic(keys) / 1e9:.1f} GB of memory needed")
    rng = ctx.rng
    query = rng.standard_normal((1, _HEADS, 1, _DIM), dtype=np.float32)
    if interleaved:
        shape = (1, keys, _HEADS, _DIM)
        memory = [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]
        return [query, *(x.transpose(0, 2, 1, 3) for x in memory)]
    shape = (1, _HEADS, keys, _DIM)
    return [query, *(rng.standard_normal(shape, dtype=np.float32) for _ in range(2))]


def _ours(arrays: list[np.ndarray]) -> Side:
    query, key, value = arrays
    return Local(functools.partial(ruvector.scaled_dot_product_attention, query, key, value))


def _torch(ctx: Context, arrays: list[np.ndarray]) -> Side:
    torch = ctx.peers.module("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    return Local(functools.partial(attend, *map(torch.from_numpy, arrays)))


def _case(keys: int, interleaved: bool, ctx: Context) -> Case:
    arrays = _arrays(ctx, keys, interleaved)
    peers = {
        "torch": lambda: _torch(ctx, arrays),
        "onnxruntime": lambda: onnx_attention(ctx, *arrays),
    }
    return Case(_ours(arrays), peers)


# Time of float32 over that of the others: required, and hoped for.
_STORED = {
    "float16": Target(1.7, 1.95),
    "bfloat16": Target(1.7, 1.95),
    "int8": Target(2.8, 3.7),
}


def _cache(ctx: Context, keys: int, dtype: str) -> Side:
    query, key, value = _arrays(ctx, keys, interleaved=True)
    cache = KVCache(_HEADS * _DIM, capacity=keys, dtype=dtype, num_heads=_HEADS)
    cache.append(*(x.transpose(0, 2, 1, 3).reshape(keys, -1) for x in (key, value)))
    return Local(functools.partial(cache.attend, query.reshape(-1)))


def _stored_case(keys: int, dtype: str, ctx: Context) -> Case:
    return Case(_cache(ctx, keys, dtype), {"float32": lambda: _cache(ctx, keys, "float32")})


def _append_case(dtype: str, ctx: Context) -> Case:
    """One token into a window that is full."""
    width, window = _HEADS * _DIM, 4096
    row = ctx.rng.standard_normal((window, width), dtype=np.float32)
    cache = KVCache(width, dtype=dtype, num_heads=_HEADS, window=window, num_sink_tokens=4)
    cache.append(row, row)
    return Case(Local(functools.partial(cache.append, row[0], row[1])))


def _stored_rows() -> list[Row]:
    return [
        *(
            Row(
                f"KVCache of {dtype}, {keys} keys",
                functools.partial(_stored_case, keys, dtype),
                {"float32": target} if keys == 100_000 else {},
                traffic=_traffic(keys) * (1 if dtype == "int8" else 2) / 4,
                # What rounding the rows changes in the output.
                tolerance=2e-2,
            )
            for keys in (10_000, 100_000)
            for dtype, target in _STORED.items()
        ),
        *(
            Row(f"append to a KVCache of {dtype}", functools.partial(_append_case, dtype))
            for dtype in ("float32", *_STORED)
        ),
    ]


def rows() -> list[Row]:
    """Keys interleaved by head, as a cache holds them, and one head after the other."""
    return [*_float32_rows(), *_stored_rows()]


def _float32_rows() -> list[Row]:
    return [
        Row(
            f"{keys} keys, {'(n, heads, dim)' if interleaved else '(heads, n, dim)'}",
            functools.partial(_case, keys, interleaved),
            {"torch": Target(2.0)} if interleaved and keys > 1000 else {},
            traffic=_traffic(keys),
            bandwidth=Target(aim=0.9) if keys == 100_000 else None,
        )
        for interleaved in (True, False)
        for keys in (1000, 10_000, 100_000)
    ]


def _rate_by_keys(ctx: Context, keys: int) -> dict[str, float]:
    arrays = _arrays(ctx, keys, interleaved=True)
    sides = present({OURS: lambda: _ours(arrays), "torch": lambda: _torch(ctx, arrays)})
    timings = sample(ctx, sides)
    return {name: _traffic(keys) / timing.median / 1e9 for name, timing in timings.items()}


def _rate_by_threads(ctx: Context, threads: int) -> dict[str, float]:
    if threads > ctx.machine.cpus:
        raise UnavailableError(f"this process may use {ctx.machine.cpus} CPUs")
    keys = 100_000
    ours = _ours(_arrays(ctx, keys, interleaved=True))
    with equal_threads(threads):
        timing = sample(ctx, {OURS: ours})[OURS]
    return {OURS: _traffic(keys) / timing.median / 1e9}


def _memory_by_keys(ctx: Context, keys: int) -> dict[str, float]:
    """Peak memory beyond inputs and output, each path in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("the peak of a running process can be read on Linux only")
    places = [Path(__file__).parents[2], Path(ruvector.__file__).parents[1]]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    measured = {}
    for queries in (1, 64):
        arguments = [str(queries), str(keys), str(ctx.threads)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", *arguments],
            capture_output=True, text=True, check=True, env=env,
        )  # fmt: skip
        measured[f"{queries} queries"] = json.loads(done.stdout) / 2**20
    return measured


def curves() -> list[Curve]:
    """GB/s by keys and by threads, and memory by keys."""
    return [
        Curve(
            "decode by keys", "keys", "GB/s", "flat once out of cache",
            (1000, 10_000, 100_000, 1_000_000), (1000, 10_000), _rate_by_keys,
        ),
        Curve(
            "decode by threads", "threads", "GB/s", "up to the memory's limit",
            (1, 2, 4, 8, 16), (1, 2), _rate_by_threads,
        ),
        Curve(
            "memory by keys", "keys", "MiB beyond inputs and output", "flat",
            (1024, 4096, 16_384, 65_536, 262_144), (1024, 16_384), _memory_by_keys,
        ),
    ]  # fmt: skip

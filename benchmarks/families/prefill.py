"""Prefill: many queries over as many keys, against torch and ONNX Runtime."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import ruvector

from ..core import OURS, Case, Context, Curve, Row, Target, UnavailableError
from ..onnx_peer import attention as onnx_attention
from ..peers import equal_threads
from ..run import present, sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

Shape = tuple[int, int, int, int]


def _flops(shape: Shape, causal: bool = False) -> float:
    batch, heads, length, dim = shape
    pairs = length * (length + 1) / 2 if causal else length * length
    return 4.0 * batch * heads * pairs * dim


def _arrays(ctx: Context, shape: Shape) -> list[np.ndarray]:
    rng = ctx.rng
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(3)]


def _ours(arrays: list[np.ndarray], causal: bool = False) -> Side:
    query, key, value = arrays
    attend = ruvector.scaled_dot_product_attention
    return Local(functools.partial(attend, query, key, value, is_causal=causal))


def _torch(ctx: Context, arrays: list[np.ndarray], causal: bool = False) -> Side:
    torch = ctx.peers.module("torch")
    tensors = [_tensor(torch, x) for x in arrays]
    attend = torch.nn.functional.scaled_dot_product_attention
    return Local(functools.partial(attend, *tensors, is_causal=causal))


def _tensor(torch: Any, x: np.ndarray) -> Any:
    if x.dtype == np.float32:
        return torch.from_numpy(x)
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)


def _float32(shape: Shape, causal: bool, ctx: Context) -> Case:
    arrays = _arrays(ctx, shape)
    peers = {"torch": lambda: _torch(ctx, arrays, causal)}
    if not causal:
        peers["onnxruntime"] = lambda: onnx_attention(ctx, *arrays)
    return Case(_ours(arrays, causal), peers)


def _own_single_thread(shape: Shape, causal: bool, ctx: Context) -> Case:
    case = _float32(shape, causal, ctx)
    query, key, value = _arrays(ctx, shape)

    def single() -> object:
        with ruvector.num_threads(1):
            return ruvector.scaled_dot_product_attention(query, key, value, is_causal=causal)

    return Case(case.ours, {**case.peers, "own, 1 thread": lambda: Local(single)})


def _bfloat16(shape: Shape, ctx: Context) -> Case:
    if "avx512_bf16" not in ctx.machine.flags:
        raise UnavailableError("this CPU has no AVX512_BF16")
    dtype = ctx.peers.module("ml_dtypes").bfloat16
    wide = _arrays(ctx, shape)
    arrays = [x.astype(dtype) for x in wide]
    peers = {"torch": lambda: _torch(ctx, arrays), "own float32": lambda: _ours(wide)}
    return Case(_ours(arrays), peers)


def _row(
    shape: Shape,
    torch: Target,
    onnx: Target | None = None,
    *,
    causal: bool = False,
    threads: int | None = None,
    peak: float | None = None,
) -> Row:
    targets = {"torch": torch, "own, 1 thread": Target(1.85, 1.95)}
    if onnx is not None:
        targets["onnxruntime"] = onnx
    build = _float32 if threads is None else _own_single_thread
    return Row(
        f"{'causal' if causal else 'full'} {shape}" + ("" if threads is None else " threaded"),
        functools.partial(build, shape, causal),
        targets,
        flops=_flops(shape, causal),
        threads=threads,
        peak=None if peak is None else Target(aim=peak),
    )


def rows() -> list[Row]:
    """Full and causal float32 with one and two threads, and bfloat16."""
    small, medium = (1, 8, 512, 64), (1, 8, 2048, 64)
    onnx = Target(1.05)
    return [
        _row(medium, Target(1.35), onnx, peak=0.90),
        _row((1, 8, 4096, 64), Target(1.35), onnx, peak=0.90),
        _row((1, 8, 2048, 128), Target(1.3), onnx, peak=0.92),
        _row(small, Target(2.2, 2.8), causal=True),
        _row(medium, Target(1.4, 1.7), causal=True),
        _row(medium, Target(1.35), onnx, threads=2),
        _row((1, 8, 2048, 128), Target(1.3), onnx, threads=2),
        _row(small, Target(2.2, 2.8), causal=True, threads=2),
        _row(medium, Target(1.4, 1.7), causal=True, threads=2),
        Row(
            f"bfloat16 full {medium}",
            functools.partial(_bfloat16, medium),
            {"torch": Target(2.1, 2.8)},
            flops=_flops(medium),
            tolerance=3e-2,
        ),
    ]


def _rate_by_length(ctx: Context, length: int) -> dict[str, float]:
    shape = (1, 2, length, 64)
    arrays = _arrays(ctx, shape)
    sides = present(
        {
            OURS: lambda: _ours(arrays),
            "torch": lambda: _torch(ctx, arrays),
            "onnxruntime": lambda: onnx_attention(ctx, *arrays),
        }
    )
    timings = sample(ctx, sides)
    return {name: _flops(shape) / timing.median / 1e9 for name, timing in timings.items()}


def _rate_by_threads(ctx: Context, threads: int) -> dict[str, float]:
    if threads > ctx.machine.cpus:
        raise UnavailableError(f"this process may use {ctx.machine.cpus} CPUs")
    shape = (1, 8, 2048, 64)
    ours = _ours(_arrays(ctx, shape))
    with equal_threads(threads):
        timing = sample(ctx, {OURS: ours})[OURS]
    return {OURS: _flops(shape) / timing.median / 1e9}


def curves() -> list[Curve]:
    """GF/s by length and by threads."""
    return [
        Curve(
            "prefill by length", "keys", "GF/s", "flat",
            (512, 1024, 2048, 4096, 8192, 16384), (512, 1024, 2048), _rate_by_length,
        ),
        Curve(
            "prefill by threads", "threads", "GF/s", "proportional to threads",
            (1, 2, 4, 8, 16), (1, 2), _rate_by_threads,
        ),
    ]  # fmt: skip

"""Linear attention and its gradients: against performer-pytorch, and flat in the length."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import ruvector

from ..core import OURS, Case, Context, Curve, Row, Target
from ..run import sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

Shape = tuple[int, int, int, int]

_FEATURES = 256


def _flops(shape: Shape) -> float:
    """Both feature maps, the sums over the keys and the queries' products with them."""
    batch, heads, length, dim = shape
    return 8.0 * batch * heads * length * _FEATURES * dim


def _arrays(ctx: Context, shape: Shape) -> list[np.ndarray]:
    """Queries and keys of unit norm, where the epsilons of both sides hardly matter."""
    q, k, v = (ctx.rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    return [ruvector.normalize(q), ruvector.normalize(k), v]


def _ours(arrays: list[np.ndarray], projection: np.ndarray, causal: bool) -> Side:
    return Local(
        functools.partial(
            ruvector.linear_attention,
            *arrays,
            num_features=_FEATURES,
            projection=projection,
            causal=causal,
        )
    )


def _performer(
    ctx: Context, arrays: list[np.ndarray], projection: np.ndarray, causal: bool
) -> Side:
    torch = ctx.peers.module("torch")
    performer = ctx.peers.module("performer_pytorch")
    layer = performer.FastAttention(arrays[0].shape[-1], _FEATURES, causal=causal)
    layer.projection_matrix.copy_(torch.from_numpy(projection))
    tensors = [torch.from_numpy(x) for x in arrays]

    def forward() -> Any:
        with torch.inference_mode():
            return layer(*tensors)

    return Local(forward)


def _with_gradients(
    ctx: Context, arrays: list[np.ndarray], projection: np.ndarray, causal: bool
) -> Case:
    """Output and gradients of q, k and v; the projection is fixed on both sides."""
    # The numbers that follow those of q, k and v.
    grad = ctx.rng.standard_normal((4, *arrays[2].shape), dtype=np.float32)[3]
    options = {"num_features": _FEATURES, "causal": causal}

    def ours() -> Any:
        output = ruvector.linear_attention(*arrays, **options)
        gradients = ruvector.linear_attention_backward(*arrays, output, grad, **options)
        return output, gradients[:3]

    def peer() -> Side:
        torch = ctx.peers.module("torch")
        performer = ctx.peers.module("performer_pytorch")
        layer = performer.FastAttention(arrays[0].shape[-1], _FEATURES, causal=causal)
        layer.projection_matrix.copy_(torch.from_numpy(projection))
        tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]

        def run() -> Any:
            output = layer(*tensors)
            return output, torch.autograd.grad(output, tensors, torch.from_numpy(grad))

        return Local(run)

    return Case(Local(ours), {"performer-pytorch": peer})


def _gradient_row(shape: Shape, target: Target, causal: bool = False) -> Row:
    def build(ctx: Context) -> Case:
        return _with_gradients(ctx, _arrays(ctx, shape), _projection(shape[-1]), causal)

    return Row(
        f"{'causal' if causal else 'full'} {shape}, {_FEATURES} features, with gradients",
        build,
        {"performer-pytorch": target},
        # The sums, both feature maps and the products with them again, and their gradients.
        flops=3.5 * _flops(shape),
        tolerance=1e-2,
    )


def _softmax(ctx: Context, arrays: list[np.ndarray], causal: bool) -> Side:
    torch = ctx.peers.module("torch")
    tensors = [torch.from_numpy(x) for x in arrays]
    attend = torch.nn.functional.scaled_dot_product_attention
    return Local(functools.partial(attend, *tensors, is_causal=causal))


def _projection(dim: int) -> np.ndarray:
    attention = ruvector.LinearAttention(dim, _FEATURES)
    return attention.parameters()["projection"]


def _case(shape: Shape, causal: bool, peer: Callable[..., Side], ctx: Context) -> Case:
    arrays, projection = _arrays(ctx, shape), _projection(shape[-1])
    name = "torch" if peer is _softmax else "performer-pytorch"
    extra = () if peer is _softmax else (projection,)
    return Case(
        _ours(arrays, projection, causal), {name: lambda: peer(ctx, arrays, *extra, causal)}
    )


def _row(
    shape: Shape, target: Target, *, causal: bool = False, threads: int | None = None
) -> Row:
    return Row(
        f"{'causal' if causal else 'full'} {shape}, {_FEATURES} features"
        + ("" if threads is None else " threaded"),
        functools.partial(_case, shape, causal, _performer),
        {"performer-pytorch": target},
        flops=_flops(shape),
        # The other side adds 1e-4 to its features, ours 1e-6.
        tolerance=1e-2,
        threads=threads,
    )


def _own_single_thread(shape: Shape, ctx: Context) -> Case:
    arrays, projection = _arrays(ctx, shape), _projection(shape[-1])
    call = functools.partial(
        ruvector.linear_attention, *arrays, num_features=_FEATURES, projection=projection
    )

    def alone() -> Any:
        with ruvector.num_threads(1):
            return call()

    return Case(Local(call), {f"{OURS}, 1 thread": lambda: Local(alone)})


def rows() -> list[Row]:
    """Full and causal, against performer-pytorch, torch's own attention and one thread."""
    medium, long = (1, 8, 2048, 64), (1, 8, 8192, 64)
    return [
        _row(medium, Target(3, 4.8)),
        _row(long, Target(3, 4.8)),
        _row((8, 8, 256, 64), Target()),
        # The other side's causal form holds every prefix in memory.
        _row((1, 2, 1024, 64), Target(), causal=True),
        _gradient_row(medium, Target(1, 2)),
        _gradient_row((1, 2, 1024, 64), Target(1, 2), causal=True),
        Row(
            f"full {medium}, {_FEATURES} features threaded",
            functools.partial(_own_single_thread, medium),
            {f"{OURS}, 1 thread": Target(1.8)},
            flops=_flops(medium),
            threads=2,
        ),
        *(
            Row(
                f"{'causal' if causal else 'full'} {long}, in time alone",
                functools.partial(_case, long, causal, _softmax),
                {"torch": Target()},
                flops=_flops(long),
                # An estimate against what it estimates.
                tolerance=math.inf,
            )
            for causal in (False, True)
        ),
    ]


def _time_of_a_token(ctx: Context, keys: int) -> dict[str, float]:
    """Microseconds of a token: appended and attended from, and in calls over whole lengths."""
    shape = (1, 1, keys, 64)
    q, k, v = _arrays(ctx, shape)
    attention = ruvector.LinearAttention(64, _FEATURES)
    attention.prefill(k[0, 0], v[0, 0])
    key, value, query = k[0, 0, -1], v[0, 0, -1], q[0, 0, -1]

    def step() -> Any:
        attention.append(key, value)
        return attention.attend(query)

    projection = _projection(64)
    sides: dict[str, Side] = {
        "append and attend": Local(step),
        "full": _ours([q, k, v], projection, False),
        "causal": _ours([q, k, v], projection, True),
    }
    timings = sample(ctx, sides)
    return {
        name: timing.median * 1e6 / (1 if name == "append and attend" else keys)
        for name, timing in timings.items()
    }


def curves() -> list[Curve]:
    """Time of a token by the number of keys."""
    return [
        Curve(
            "linear attention by length", "keys", "us per token", "flat",
            (1024, 4096, 16_384, 65_536, 262_144), (1024, 4096, 16_384), _time_of_a_token,
        )
    ]  # fmt: skip

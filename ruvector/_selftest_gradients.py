"""The gradients of attention for the self-test.

Those of dense attention are compared with their formula, those in the ball and in dual space
with central differences of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _kernels
from ._config import num_threads
from ._gradients import attention_backward
from ._selftest_reference import attention
from .attention import DualSpaceAttention, HyperbolicAttention, MultiHeadAttention
from .functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["gradients"]

# Relative to 1 + |expected|: sums over some hundred rows of what forward tolerances bound.
TOLERANCE = {"float64": 1e-11, "float32": 1e-4, "float16": 1e-2}

# (heads, key heads, queries, keys, dim, dim_v)
_SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 1, 7, 9, 8, 5),
    (6, 2, 17, 31, 33, 17),
    (2, 2, 33, 97, 40, 72),
    (1, 1, 35, 300, 24, 24),
    (2, 1, 130, 65, 64, 64),
)


def gradients(rng: np.random.Generator) -> Iterator[Case]:
    """Yield gradients in every argument, of functions and classes."""
    for dtype in TOLERANCE:
        for shape in _SHAPES:
            for label, options in _features(rng, shape):
                yield from _compared(rng, shape, dtype, label, options)
    yield from _threads(rng)
    yield from _classes(rng)
    yield from _in_the_ball(rng)


def _features(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    heads, _, m, n, _, _ = shape
    mask = rng.random((m, n)) < 0.7
    mask[m // 2] = False
    bias = np.where(
        rng.random((heads, m, n)) < 0.8, rng.standard_normal((heads, m, n)), -np.inf
    )
    yield "plain", {}
    yield "bool mask, causal", {"attn_mask": mask, "is_causal": True}
    yield (
        "everything",
        {
            "attn_mask": bias.astype(np.float32),
            "causal_alignment": "bottom_right",
            "scale": 0.3,
            "window": (20, 9),
            "num_sink_tokens": 1,
            "sink_logits": rng.standard_normal(heads).astype(np.float32),
            "softcap": 2.0,
            "alibi_slopes": np.exp2(-np.arange(1.0, heads + 1)).astype(np.float32),
        },
    )


def _compared(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    dtype: str,
    label: str,
    options: dict[str, Any],
) -> Iterator[Case]:
    heads, key_heads, m, n, dim, dim_v = shape
    q = rng.standard_normal((2, heads, m, dim)).astype(dtype)
    k = rng.standard_normal((2, key_heads, n, dim)).astype(dtype)
    v = rng.standard_normal((2, key_heads, n, dim_v)).astype(dtype)
    output, lse = scaled_dot_product_attention(
        q, k, v, enable_gqa=True, return_lse=True, **options
    )
    grad = rng.standard_normal(output.shape).astype(dtype)
    grad_lse = rng.standard_normal(lse.shape).astype(lse.dtype)
    got = attention_backward(
        q, k, v, output, lse, grad, grad_lse=grad_lse, enable_gqa=True, **options
    )
    expected = _formula(q, k, v, grad, grad_lse, options)
    for name, array in got._asdict().items():
        if array is not None:
            allowed = max(TOLERANCE[dtype], TOLERANCE[array.dtype.name])
            yield f"{name}: {label}, {dtype}, {shape}", array, expected[name], allowed


def _formula(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    grad: NDArray[Any],
    grad_lse: NDArray[Any],
    options: dict[str, Any],
) -> dict[str, NDArray[Any]]:
    group = q.shape[1] // k.shape[1]
    q, grad = q.astype(np.float64), grad.astype(np.float64)
    scale = options.get("scale", q.shape[3] ** -0.5)
    output, lse, weights = attention(q, k, v, **options)
    keys, values = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    delta = (grad * output).sum(axis=-1) - grad_lse
    scores = weights * (grad @ values.swapaxes(2, 3) - delta[..., None])
    m, n = scores.shape[2:]
    distances = np.abs(np.arange(m)[:, None] + n - m - np.arange(n))
    result = {
        "attn_mask": scores.sum(axis=0),
        "alibi_slopes": -(scores * distances).sum(axis=(0, 2, 3)),
        "value": _by_key_head(weights.swapaxes(2, 3) @ grad, group),
    }
    if "sink_logits" in options:
        sinks = options["sink_logits"][:, None].astype(np.float64)
        result["sink_logits"] = -(np.exp(sinks - lse) * delta).sum(axis=(0, 2))
    if "softcap" in options:
        capped = np.tanh(scale * (q @ keys.swapaxes(2, 3)) / options["softcap"])
        scores = scores * (1 - capped**2)
    result["query"] = scale * (scores @ keys)
    result["key"] = _by_key_head(scale * (scores.swapaxes(2, 3) @ q), group)
    return result


def _by_key_head(x: NDArray[Any], group: int) -> NDArray[Any]:
    total: NDArray[Any] = x.reshape(len(x), -1, group, *x.shape[2:]).sum(axis=2)
    return total


def _threads(rng: np.random.Generator) -> Iterator[Case]:
    q, k, v, grad = rng.standard_normal((4, 2, 257, 64)).astype(np.float32)
    output, lse = scaled_dot_product_attention(q, k, v, return_lse=True)
    results = []
    for threads in (1, 3):
        with num_threads(threads):
            results.append(attention_backward(q, k, v, output, lse, grad))
    same = 0.0 if _kernels.backend == "native" else TOLERANCE["float32"]
    for name in ("query", "key", "value"):
        one, three = (getattr(result, name) for result in results)
        yield f"{name}: 1 and 3 threads", three, one, same


def _classes(rng: np.random.Generator) -> Iterator[Case]:
    heads, m, n, dim = 4, 9, 33, 32
    q, k, v, grad = (rng.standard_normal((rows, dim)) for rows in (m, n, n, m))
    _, got = MultiHeadAttention(dim, heads).compute_with_gradients(q, k, v, grad)
    split = (x.reshape(len(x), heads, -1).swapaxes(0, 1)[None] for x in (q, k, v, grad))
    query, key, value, grad = split
    expected = _formula(query, key, value, grad, np.zeros((1, heads, m)), {})
    for ours, name in (("query", "query"), ("keys", "key"), ("values", "value")):
        joined = expected[name][0].swapaxes(0, 1).reshape(-1, dim)
        yield f"{ours}: MultiHeadAttention", got[ours], joined, TOLERANCE["float64"]


# Attention with a part in the ball, over vectors of 8 numbers.
_BALLS: tuple[tuple[str, Any], ...] = (
    ("midpoint", lambda: _hyperbolic("midpoint", "ball")),
    ("midpoint of tangents", lambda: _hyperbolic("midpoint", "tangent")),
    ("Frechet mean", lambda: _hyperbolic("frechet", "tangent")),
    ("dual space", lambda: DualSpaceAttention.simple_fused(8, 2, 1.0, 0.4)),
)
_STEP = 1e-5


def _hyperbolic(aggregation: str, inputs: str) -> HyperbolicAttention:
    return HyperbolicAttention(
        8, 1.3, 0.7, aggregation, inputs, learn_curvature=True, learn_temperature=True, tol=1e-9
    )


def _in_the_ball(rng: np.random.Generator) -> Iterator[Case]:
    for label, make in _BALLS:
        attention = make()
        for m, n in ((1, 1), (5, 33), (70, 40)):
            given = [0.2 * rng.standard_normal((rows, 8)) for rows in (m, n, n)]
            mask = rng.standard_normal((m, n))
            grad, grad_lse = (
                rng.standard_normal((m, 8)),
                rng.standard_normal((m, 2) if label == "dual space" else m),
            )
            yield from _along_a_line(rng, attention, label, [*given, mask], grad, grad_lse)


def _along_a_line(
    rng: np.random.Generator,
    attention: Any,
    label: str,
    given: list[Any],
    grad: NDArray[Any],
    grad_lse: NDArray[Any],
) -> Iterator[Case]:
    """Compare the slope in a random direction, and the gradients of float32 with those."""
    query, keys, values, mask = given
    _, got = attention.compute_with_gradients(
        query, keys, values, grad, grad_lse=grad_lse, mask=mask
    )
    parameters = attention.parameters()
    variables = [*given, *parameters.values()]
    gradients = [got.query, got.keys, got.values, got.mask, *got.parameters.values()]
    directions = [rng.standard_normal(x.shape) for x in variables]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    before = [x.copy() for x in variables]

    def at(step: float) -> float:
        for x, start, direction in zip(variables, before, directions, strict=True):
            x[...] = start + step * direction
        output, lse = attention.compute(query, keys, values, mask=mask, return_lse=True)
        return float((output * grad).sum() + (lse * grad_lse).sum())

    quotient = (at(_STEP) - at(-_STEP)) / (2 * _STEP)
    for x, start in zip(variables, before, strict=True):
        x[...] = start
    shape = (len(query), len(keys))
    # What a Frechet mean's tolerance leaves, over the step, and the step's own error.
    yield f"slope: {label}, {shape}", np.array(slope), np.array(quotient), 1e-5
    brief = [x.astype(np.float32) for x in given]
    _, single = attention.compute_with_gradients(
        *brief[:3], grad, grad_lse=grad_lse, mask=brief[3]
    )
    for name in ("query", "keys", "values", "mask"):
        yield f"{name}: {label}, float32, {shape}", single[name], got[name], 1e-4

"""Linear attention against its quadratic form, for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .attention import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["linear"]

_TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 2e-3}

# (queries, keys, dim, dim_v, features)
_SHAPES = (
    (1, 1, 1, 1, 1),
    (1, 300, 64, 64, 256),
    (17, 97, 33, 17, 40),
    (130, 130, 24, 5, 100),
    (9, 600, 16, 31, 17),
)


def _products(
    attention: LinearAttention, query: NDArray[Any], keys: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the weights of all pairs before they are divided, and the logarithm of a factor.

    Each row's keys are relative to the largest exponent among those that it sees.
    """
    q, k = query.astype(np.float64), keys.astype(np.float64)
    last = np.arange(len(q)) + len(k) - len(q) if attention.causal else np.full(len(q), len(k))
    seen = np.arange(len(k)) <= last[:, None]
    if attention.kernel == "elu":
        left, right = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
        return seen * (left @ right.T), np.zeros(len(q))
    w = attention.parameters()["projection"].astype(np.float64)
    if attention.kernel == "relu":
        left, right = (np.maximum(x @ w.T, 0) + 1e-3 for x in (q, k))
        return seen * (left @ right.T) / len(w), np.zeros(len(q))
    left, right = (
        x @ w.T - (x * x).sum(axis=1, keepdims=True) / 2
        for x in (q * attention.dim**-0.25, k * attention.dim**-0.25)
    )
    top = np.maximum.accumulate(right.max(axis=1))[np.minimum(last, len(k) - 1)]
    own = left.max(axis=1)
    left = np.exp(left - own[:, None]) + 1e-6
    products = [phi @ (np.exp(right - s) + 1e-6).T for phi, s in zip(left, top, strict=True)]
    return seen * np.stack(products) / len(w), own + top


def linear(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of every kernel, causal or not, and of the running state."""
    for dtype, allowed in _TOLERANCE.items():
        for shape in _SHAPES:
            m, n, dim, dim_v, count = shape
            q, k, v = (
                rng.standard_normal((rows, width)).astype(dtype)
                for rows, width in ((m, dim), (n, dim), (n, dim_v))
            )
            for kernel in ("softmax", "relu", "elu"):
                for causal in (False, True):
                    attention = LinearAttention(dim, count, kernel, causal=causal)
                    products, shift = _products(attention, q, k)
                    total = products.sum(axis=1)
                    expected = products @ v.astype(np.float64) / total[:, None]
                    out, lse = attention.compute(q, k, v, return_lse=True)
                    label = f"{kernel}{', causal' if causal else ''}, {dtype}, {shape}"
                    yield label, out, expected, allowed
                    bound = min(allowed, _TOLERANCE["float32"])
                    yield f"{label}, lse", lse, np.log(total) + shift, bound
                attention = LinearAttention(dim, count, kernel)
                attention.prefill(k[: n // 2], v[: n // 2])
                attention.append(k[n // 2 :], v[n // 2 :])
                whole = attention.compute(q, k, v)
                yield f"state, {kernel}, {dtype}, {shape}", attention.attend(q), whole, allowed

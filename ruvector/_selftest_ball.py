"""Attention with a part in a Poincare ball against its formula, for the self-test.

The formula takes the points and their distances through the hyperboloid, where the midpoint
is a mean that is scaled back, and so shares no form with the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .attention import DualSpaceAttention, HyperbolicAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["dual_space", "hyperbolic"]

_TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
_SHAPES = ((1, 1, 8), (1, 300, 64), (9, 33, 17), (70, 70, 32))


def _onto_hyperboloid(v: NDArray[Any], c: float, tangent: bool) -> NDArray[np.float64]:
    """Return ``sqrt(c) (t, s)`` of points, or of tangent vectors at the origin."""
    v = np.sqrt(c) * v.astype(np.float64)
    norm = np.linalg.norm(v, axis=-1, keepdims=True)
    if tangent:
        parts = np.cosh(2 * norm), np.sinh(2 * norm) * v / norm
    else:
        parts = (1 + norm**2) / (1 - norm**2), 2 * v / (1 - norm**2)
    return np.concatenate(parts, axis=-1)


def _attended(
    scores: NDArray[Any], x: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return softmax weights and the scaled mean of points on the hyperboloid."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mean = weights @ x
    mean /= np.sqrt(mean[..., :1] ** 2 - (mean[..., 1:] ** 2).sum(axis=-1, keepdims=True))
    return weights, mean


def _distances(x: NDArray[Any], y: NDArray[Any], c: float) -> NDArray[np.float64]:
    cosh = x[:, :1] * y[:, 0] - x[:, 1:] @ y[:, 1:].T
    return np.asarray(np.arccosh(np.maximum(cosh, 1)) / np.sqrt(c), np.float64)


def _arrays(rng: np.random.Generator, m: int, n: int, dim: int, dtype: str) -> Any:
    return (
        (0.4 * rng.standard_normal((rows, dim)) / np.sqrt(dim)).astype(dtype)
        for rows in (m, n, n)
    )


def hyperbolic(rng: np.random.Generator) -> Iterator[Case]:
    """Compare ``HyperbolicAttention`` over points and over tangent vectors."""
    for dtype, allowed in _TOLERANCE.items():
        for m, n, dim in _SHAPES:
            for c, inputs in ((1.0, "ball"), (0.5, "tangent")):
                q, k, v = _arrays(rng, m, n, dim, dtype)
                attention = HyperbolicAttention(dim, c, 0.5, inputs=inputs)
                out, weights = attention.compute(q, k, v, return_weights=True)
                x, y, z = (_onto_hyperboloid(a, c, inputs == "tangent") for a in (q, k, v))
                expected, mean = _attended(-2 * _distances(x, y, c), z)
                label = f"{inputs}, {dtype}, {(m, n, dim)}"
                point = mean[:, 1:] / (1 + mean[:, :1]) / np.sqrt(c)
                yield label, out, point, allowed
                yield f"{label}, weights", weights, expected, allowed
                one = attention.compute(q[-1], k, v)
                yield f"{label}, one query", one, point[-1], allowed


def dual_space(rng: np.random.Generator) -> Iterator[Case]:
    """Compare ``DualSpaceAttention`` with one head and with two."""
    c, w = 1.5, 0.3
    for dtype, allowed in _TOLERANCE.items():
        for m, n, dim in _SHAPES:
            for heads in (1, 2):
                q, k, v = _arrays(rng, m, n, 4 * dim, dtype)
                attention = DualSpaceAttention.simple_fused(4 * dim, heads, c, w)
                flat, curved = [], []
                for h in range(heads):
                    half, size = 2 * dim, 2 * dim // heads
                    a = slice(h * size, (h + 1) * size)
                    b = slice(half + h * size, half + (h + 1) * size)
                    x, y, z = (_onto_hyperboloid(u[:, b], c, True) for u in (q, k, v))
                    scores = (1 - w) * (q[:, a].astype(np.float64) @ k[:, a].T) / np.sqrt(size)
                    weights, mean = _attended(scores - w * _distances(x, y, c), z)
                    flat.append(weights @ v[:, a])
                    length = np.arccosh(mean[:, :1]) / 2 / np.sqrt(c)
                    along = mean[:, 1:]
                    curved.append(length * along / np.linalg.norm(along, axis=1, keepdims=True))
                expected = np.concatenate([*flat, *curved], axis=1)
                label = f"{dtype}, {(m, n, 4 * dim)}, {heads} heads"
                yield label, attention.compute(q, k, v), expected, allowed

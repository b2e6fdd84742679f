"""Attention with rotary positions against its formula, for the self-test.

The formula is written in complex numbers, where a pair is a number and a turn a product, and
so shares no form with the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._selftest_reference import attention
from .attention import GraphRoPEAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["graph_rope", "rope_gradients"]

_TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "float16": 3e-3}

# (queries, keys, heads, width of a head)
_SHAPES = ((1, 1, 1, 2), (1, 300, 6, 64), (1, 70, 1, 34), (33, 97, 2, 10), (130, 200, 1, 64))


def _turned(
    x: NDArray[Any], positions: NDArray[np.int64], heads: int, neighbours: bool
) -> NDArray[np.float64]:
    """Return vectors by heads ``(heads, rows, width)``, turned."""
    rows = x.astype(np.float64).reshape(len(x), heads, -1).swapaxes(0, 1)
    half = rows.shape[2] // 2
    pairs = [slice(0, None, 2), slice(1, None, 2)]
    if not neighbours:
        pairs = [slice(0, half), slice(half, None)]
    speeds = 10000.0 ** -(np.arange(half) / half)
    numbers = rows[..., pairs[0]] + 1j * rows[..., pairs[1]]
    numbers *= np.exp(1j * np.multiply.outer(positions, speeds))
    rows = np.empty(rows.shape)
    rows[..., pairs[0]], rows[..., pairs[1]] = numbers.real, numbers.imag
    return rows


def graph_rope(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of attention between positions, and of turned vectors."""
    for dtype, allowed in _TOLERANCE.items():
        for shape in _SHAPES:
            m, n, heads, width = shape
            dim = heads * width
            q, k, v = (rng.standard_normal((rows, dim)).astype(dtype) for rows in (m, n, n))
            places = rng.integers(0, 500, m), rng.integers(0, 500, n)
            for layout in ("half", "interleaved"):
                rope = GraphRoPEAttention(
                    dim=dim, max_position=500, num_heads=heads, layout=layout
                )
                query, key = (
                    _turned(x, p, heads, layout == "interleaved")[np.newaxis]
                    for x, p in zip((q, k), places, strict=True)
                )
                values = v.astype(np.float64).reshape(n, heads, width).swapaxes(0, 1)
                expected, expected_lse, _ = attention(query, key, values[np.newaxis])
                out, lse = rope.compute_with_positions(q, k, v, *places, return_lse=True)
                label = f"{layout}, {dtype}, {shape}"
                yield label, out, expected[0].swapaxes(0, 1).reshape(m, dim), allowed
                wanted = expected_lse[0, 0] if heads == 1 else expected_lse[0].T
                exact = _TOLERANCE["float64" if dtype == "float64" else "float32"]
                yield f"{label}, lse", lse, wanted, exact
                wanted = key[0].swapaxes(0, 1).reshape(n, dim)
                yield f"{label}, turned", rope.apply_rotary(k, places[1]), wanted, allowed


def rope_gradients(rng: np.random.Generator) -> Iterator[Case]:
    """Yield gradients at given positions: turned back by them, as they are orthogonal."""
    for dtype, allowed in (("float64", 1e-11), ("float32", 1e-4)):
        for m, n, heads, width in _SHAPES:
            dim = heads * width
            q, k, v, grad = (
                rng.standard_normal((rows, dim)).astype(dtype) for rows in (m, n, n, m)
            )
            places = rng.integers(0, 500, m), rng.integers(0, 500, n)
            for layout in ("half", "interleaved"):
                rope = GraphRoPEAttention(
                    dim=dim, max_position=500, num_heads=heads, layout=layout
                )
                _, got = rope.compute_with_gradients(
                    q, k, v, grad, query_position=places[0], key_positions=places[1]
                )
                neighbours = layout == "interleaved"
                query, key = (
                    _turned(x, p, heads, neighbours)
                    for x, p in zip((q, k), places, strict=True)
                )
                values, above = (
                    x.astype(np.float64).reshape(len(x), heads, width).swapaxes(0, 1)
                    for x in (v, grad)
                )
                output, _, weights = (
                    x[0] for x in attention(query[None], key[None], values[None])
                )
                delta = (above * output).sum(axis=-1, keepdims=True)
                scores = weights * (above @ values.swapaxes(1, 2) - delta) / width**0.5
                back = [
                    _turned(_joined(x), -p, heads, neighbours)
                    for x, p in (
                        (scores @ key, places[0]),
                        (scores.swapaxes(1, 2) @ query, places[1]),
                    )
                ]
                expected = [*back, weights.swapaxes(1, 2) @ above]
                for name, wanted in zip(("query", "keys", "values"), expected, strict=True):
                    label = f"{name}: {layout}, {dtype}, {(m, n, heads, width)}"
                    yield label, got[name], _joined(wanted), allowed


def _joined(x: NDArray[Any]) -> NDArray[Any]:
    """Lay heads ``(heads, rows, width)`` side by side."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)

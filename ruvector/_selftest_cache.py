"""Caches in every storage type against the formula over what they hold, for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._cache import KVCache, Storage
from ._selftest_reference import attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["cache"]

_TOLERANCE = 1e-5

# What is read back differs by at most this part of the row's largest entry.
_ROUNDING: dict[Storage, float] = {
    "float32": 0.0,
    "float16": 2**-11,
    "bfloat16": 2**-8,
    "int8": 1 / 253.9,
}

# (heads, queries, keys, dim, dim_v of a head)
_SHAPES = (
    (1, 1, 1, 1, 1),
    (6, 1, 300, 64, 64),
    (2, 3, 97, 33, 17),
    (3, 40, 131, 16, 31),
    (1, 1, 3000, 24, 40),
)


def _by_head(x: NDArray[Any], heads: int) -> NDArray[Any]:
    return x.reshape(1, len(x), heads, -1).swapaxes(1, 2)


def cache(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of attention, of what is read back, and of what a window leaves."""
    for dtype, rounding in _ROUNDING.items():
        for shape in _SHAPES:
            heads, m, n, dim, dim_v = shape
            q, k, v = (
                rng.standard_normal((rows, heads * width)).astype(np.float32)
                for rows, width in ((m, dim), (n, dim), (n, dim_v))
            )
            memory = KVCache(heads * dim, heads * dim_v, dtype=dtype, num_heads=heads)
            memory.append(k, v)
            label = f"{dtype}, {shape}"
            error = _by_head(memory.keys.astype(np.float64) - k, heads)
            allowed = rounding * np.abs(_by_head(k, heads)).max(axis=-1, keepdims=True)
            yield f"{label}, rows", np.maximum(np.abs(error) - allowed, 0), 0 * error, 1e-9
            out, lse = memory.attend(q, causal=True, return_lse=True)
            expected, expected_lse, _ = attention(
                _by_head(q, heads),
                _by_head(memory.keys, heads),
                _by_head(memory.values, heads),
                is_causal=True,
                causal_alignment="bottom_right",
            )
            joined = expected[0].swapaxes(0, 1).reshape(m, -1)
            yield label, out, joined, _TOLERANCE
            squeeze = 0 if heads == 1 else slice(None)
            yield f"{label}, lse", lse, expected_lse[0, squeeze].T, _TOLERANCE
        window = KVCache(4, dtype=dtype, window=5, num_sink_tokens=2)
        rows = rng.integers(-127, 128, (60, 4)).astype(np.float32)
        rows[:, 0] = 127  # whole numbers that every type holds
        for start in range(0, 60, 7):
            window.append(rows[start : start + 7], rows[start : start + 7])
        kept = rows[[0, 1, *range(55, 60)]]
        yield f"{dtype}, window and sink tokens", window.keys, kept, 0.0

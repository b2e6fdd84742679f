"""Memories of many lengths and a memory in parts against the formula, for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ._selftest_reference import attention
from .attention import DotProductAttention, FlashAttention, MultiHeadAttention
from .batch import parallel_attention_compute
from .sharding import sharded_attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["memories", "shards"]

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3}
_LENGTHS = (1, 0, 7, 16, 33, 600, 2000)
_DIM = 24


def _by_head(x: NDArray[Any], heads: int) -> NDArray[Any]:
    return x.reshape(1, len(x), heads, x.shape[1] // heads).swapaxes(1, 2)


def _formula(
    arrays: tuple[NDArray[Any], ...], heads: int, **options: Any
) -> tuple[NDArray[Any], NDArray[Any]]:
    query, key, value = (_by_head(x, heads) for x in arrays)
    out, lse, _ = attention(query, key, value, **options)
    return out[0].swapaxes(0, 1).reshape(len(arrays[0]), -1), lse[0].T


def memories(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of queries that each have a memory of their own, an empty one too."""
    families = (
        DotProductAttention(_DIM),
        MultiHeadAttention(_DIM, 3),
        FlashAttention(_DIM, causal=True),
    )
    for dtype, allowed in _TOLERANCE.items():
        for rows in (1, 3, 20):
            queries, keys, values = (
                [rng.standard_normal((n, _DIM)).astype(dtype) for n in lengths]
                for lengths in ([rows] * len(_LENGTHS), _LENGTHS, _LENGTHS)
            )
            for family in families:
                heads = family._heads
                causal = isinstance(family, FlashAttention)
                outputs = parallel_attention_compute(family, queries, keys, values)
                expected = [
                    _formula(one, heads, is_causal=causal, causal_alignment="bottom_right")[0]
                    for one in zip(queries, keys, values, strict=True)
                ]
                label = f"{type(family).__name__}, {dtype}, {rows} rows"
                yield label, np.stack(outputs), np.stack(expected), allowed


def shards(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of a memory in parts, empty ones too, with the whole."""
    options: tuple[dict[str, Any], ...] = (
        {},
        {"is_causal": True},
        {"window": (30, 10), "num_sink_tokens": 4},
    )
    for dtype, allowed in _TOLERANCE.items():
        query, keys, values = (
            rng.standard_normal((n, _DIM)).astype(dtype) for n in (9, 300, 300)
        )
        cuts = [0, 1, 1, 40, 170, 300]
        parts = list(zip(np.split(keys, cuts), np.split(values, cuts), strict=True))
        for heads in (1, 3):
            for given in options:
                output, lse = sharded_attention(
                    query,
                    parts,
                    attention=MultiHeadAttention(_DIM, heads),
                    return_lse=True,
                    **given,
                )
                expected, expected_lse = _formula(
                    (query, keys, values), heads, causal_alignment="bottom_right", **given
                )
                label = f"{heads} heads, {dtype}, {given}"
                yield label, output, expected, allowed
                shaped = lse.reshape(expected_lse.shape)
                yield f"{label}, lse", shaped, expected_lse, min(allowed, 1e-5)

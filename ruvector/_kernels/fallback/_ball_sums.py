"""The gradient of attention in the ball around its two passes: what is summed, and for whom.

The passes sum over pairs of points; what remains are maps of single rows, here applied to
whole arrays at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._ball_derivatives import (
    conformal_rows,
    conformal_rows_backward,
    distances_backward,
)
from ruvector._kernels.spec import AttentionSpec, BallSpec

__all__ = ["Arrays", "CompiledSums", "DistanceSums", "wide", "wide_rows"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Numbers of rows that a map of single rows takes at a time.
_PIECE = 1 << 15


class Arrays(NamedTuple):
    """The arrays of a call, or their gradients."""

    query: _Array | None
    key: _Array | None
    value: _Array | None
    ball_query: _Array
    ball_key: _Array
    ball_value: _Array | None


def wide(array: _Array) -> _Float64:
    """Convert a storage array to float64."""
    return _storage.widen(array).astype(np.float64)


def wide_rows(value: _Array | None, ball_value: _Array, ball: BallSpec) -> _Float64:
    """Give the rows ``[v, lambda x(v), lambda - 1]`` that are averaged."""
    rows = conformal_rows(wide(ball_value), ball)
    return rows if value is None else np.concatenate((wide(value), rows), axis=-1)


class DistanceSums:
    """What distances from other points do to some points: sums over the others."""

    __slots__ = ("mass", "others", "pairs")

    def __init__(self, shape: tuple[int, ...], dtype: Any = np.float64) -> None:
        self.others = np.zeros(shape, dtype)
        self.mass, self.pairs = np.zeros(shape[:-1], dtype), np.zeros(shape[:-1], dtype)

    def part(self, piece: tuple[slice, ...]) -> DistanceSums:
        """View the sums of some of the points."""
        own = copy(self)
        own.others, own.mass = self.others[piece], self.mass[piece]
        own.pairs = self.pairs[piece]
        return own

    def pulled_back(self, rows: _Float64, ball: BallSpec) -> tuple[_Float64, float]:
        """Give the gradients of the stored rows and of the curvature."""
        shape = rows.shape[:-1]
        return distances_backward(
            rows,
            self.others.reshape(rows.shape).astype(np.float64, copy=False),
            self.mass.reshape(shape).astype(np.float64, copy=False),
            self.pairs.reshape(shape).astype(np.float64, copy=False),
            ball,
        )


def _pieces(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut arrays of rows so that a map of single rows works in the cache."""
    if len(shape) == 1 or prod(shape) <= _PIECE:
        yield ()
        return
    inner = prod(shape[1:])
    if inner <= _PIECE:
        step = _PIECE // max(1, inner)
        for start in range(0, shape[0], step):
            yield (slice(start, start + step),)
        return
    for start in range(shape[0]):
        for rest in _pieces(shape[1:]):
            yield (slice(start, start + 1), *rest)


class CompiledSums:
    """What the compiled passes read of a call beside queries and keys, and what they write.

    They work on reals throughout: float64 for float64, else float32, contiguous.

    Attributes
    ----------
    rows, state, grad_state : ndarray
        What is averaged of each key, the averages and their gradient.
    lse, delta : ndarray, shape (B, H, Lq)
        L, and ``rowsum(G * O) - dL``.
    of_query, of_key, of_rows : ndarray
        Take the gradients of queries and keys outside of the ball and of the rows.
    by_query, by_key : DistanceSums
        Take what distances do.
    distances : ndarray, shape (B, H, Lq), or None
        Takes ``log2(e) sum_j dS asinh(sqrt(u))`` where parameters are wanted.
    """

    __slots__ = (
        "by_key", "by_query", "delta", "distances", "grad_state", "lse", "of_key", "of_query",
        "of_rows", "rows", "state",
    )  # fmt: skip

    def __init__(
        self,
        given: tuple[_Array, _Array, _Array, _Array],
        value: _Array | None,
        ball_value: _Array,
        state: _Array,
        lse: _Array,
        grad_state: _Array,
        grad_lse: _Array | None,
        ball: BallSpec,
        wanted: bool,
    ) -> None:
        query, key, ball_query, ball_key = given
        dtype = query.dtype
        width = grad_state.shape[3]
        self.rows = np.empty((*ball_value.shape[:3], width), dtype)
        for piece in _pieces(ball_value.shape):
            own = None if value is None else value[piece]
            self.rows[piece] = wide_rows(own, ball_value[piece], ball)
        delta = np.einsum("bhid,bhid->bhi", grad_state, state, dtype=np.float64)
        if grad_lse is not None:
            delta -= grad_lse
        self.delta = np.ascontiguousarray(delta, dtype)
        self.state, self.lse = np.ascontiguousarray(state), np.ascontiguousarray(lse)
        self.grad_state = np.ascontiguousarray(grad_state, dtype)
        self.of_query, self.of_key = np.zeros(query.shape, dtype), np.zeros(key.shape, dtype)
        self.of_rows = np.zeros(self.rows.shape, dtype)
        self.by_query = DistanceSums(ball_query.shape, dtype)
        self.by_key = DistanceSums(ball_key.shape, dtype)
        self.distances = np.zeros(lse.shape, dtype) if wanted else None

    def store(
        self,
        given: tuple[_Array | None, ...],
        targets: tuple[_Array | None, ...],
        grad_parameters: _Float64 | None,
        spec: AttentionSpec,
        ball: BallSpec,
    ) -> None:
        """Take everything back to the rows, one array after another as in :class:`Arrays`."""
        arrays, wanted = Arrays(*given), Arrays(*targets)  # type: ignore[arg-type]
        c = ball.curvature
        curvature = -float(self.by_query.pairs.sum(dtype=np.float64)) / c
        for sums, stored, target in (
            (self.by_query, arrays.ball_query, wanted.ball_query),
            (self.by_key, arrays.ball_key, wanted.ball_key),
        ):
            for piece in _pieces(stored.shape):
                result, own = sums.part(piece).pulled_back(wide(stored[piece]), ball)
                curvature += own
                _storage.store(target[piece], result)
        assert arrays.ball_value is not None
        assert wanted.ball_value is not None
        width = self.rows.shape[3] - arrays.ball_value.shape[3] - 1
        for piece in _pieces(arrays.ball_value.shape):
            of_rows = self.of_rows[piece][..., width:].astype(np.float64)
            stored = wide(arrays.ball_value[piece])
            result, own = conformal_rows_backward(stored, of_rows, ball)
            curvature += own
            _storage.store(wanted.ball_value[piece], result)
        for flat, of_flat in (
            (wanted.query, self.of_query),
            (wanted.key, self.of_key),
            (wanted.value, self.of_rows[..., :width]),
        ):
            if flat is not None:
                _storage.store(flat, of_flat)
        if grad_parameters is None or self.distances is None:
            return
        scale = 0.0
        if arrays.query is not None and spec.scale != 0:
            touched = self.of_query != 0
            total = np.multiply(
                self.of_query, _storage.widen(arrays.query), where=touched,
                out=np.zeros_like(self.of_query),
            )  # fmt: skip
            scale = float(total.sum(dtype=np.float64)) / spec.scale
        counted = float(self.distances.sum(dtype=np.float64)) * np.log(2) * 2 / np.sqrt(c)
        curvature += ball.distance_scale / (2 * c) * counted
        grad_parameters[...] = scale, -counted, curvature

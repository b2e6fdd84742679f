r"""The gradient of softmax attention by key tiles: the NumPy twin of the compiled kernel.

With the weights recomputed from L, for the gradients dO of o and dL of L ::

    P = exp(S - L)                 dP = dO V^T            D = rowsum(dO * O) - dL
    dV = P^T dO                    dS = P * (dP - D)
    dQ = scale dS K                dK = scale dS^T Q

(FlashAttention-2, Dao 2023, arXiv 2307.08691, with dL kept). A softcap c multiplies what
goes on to dQ and dK by ``1 - tanh(s / c)^2``; a bias has the gradient dS, a slope
``-sum dS |pos - j|``, a sink logit ``-sum exp(sink - L) D``. A key of weight 0 adds exactly
nothing to anything, whatever it or its row hold. Five matrix products, done by BLAS, of
``2 Lq Lk D`` floating-point operations each; memory is a few tiles of a megabyte, and for
float16 and bfloat16 the sums over the queries in float32, some heads at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._ball_backward import attend_ball_backward
from ruvector._kernels.fallback._online import zero_point
from ruvector._kernels.fallback._products import add_summed, product
from ruvector._kernels.fallback._sequences import sequences
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.fallback._tiles import Block, Tile, blocks, part_of
from ruvector._kernels.spec import AttentionSpec

__all__ = ["attend_backward", "attend_ball_backward"]

_Array = NDArray[Any]


def attend_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array,
    grad_out: _Array,
    grad_lse: _Array | None,
    grad_query: _Array | None,
    grad_key: _Array | None,
    grad_value: _Array | None,
    grad_bias: _Array | None,
    grad_slopes: _Array | None,
    grad_sinks: _Array | None,
    spec: AttentionSpec,
    threads: int,
) -> None:
    """Compute the gradients of the attention state (o, L).

    Parameters
    ----------
    query, key, value : ndarray
        As in ``softmax.attend``.
    out : ndarray, shape (B, H, Lq, Dv)
        o as ``softmax.attend`` wrote it.
    lse : ndarray, shape (B, H, Lq)
        L as ``softmax.attend`` wrote it.
    grad_out : ndarray, shape (B, H, Lq, Dv)
        Gradient of o, in the query's dtype; any strides on the first three axes, the last
        axis contiguous.
    grad_lse : ndarray, shape (B, H, Lq), or None
        Gradient of L: float64 for float64, else float32. None stands for zeros.
    grad_query, grad_key, grad_value : ndarray, or None
        Take the gradients, in shape and dtype of `query`, `key` and `value`; the last axis
        contiguous. None where not wanted, as are the next three. No two overlap.
    grad_bias : ndarray, shape (B, H, Lq, Lk), or None
        The gradient of the bias, float64 for float64, else float32, is added to it: summed
        over the axes along which it has length 1 instead.
    grad_slopes : ndarray, shape (H,), or None
        Takes the gradient of the slopes, in the dtype of `grad_bias`.
    grad_sinks : ndarray, shape (H,), or None
        Takes the gradient of the sink logits, in the dtype of `grad_bias`.
    spec : AttentionSpec
        Score function and visible set, as in ``softmax.attend``.
    threads : int
        How many threads BLAS may use.
    """
    for target in (grad_query, grad_key, grad_value):
        if target is not None:
            target[...] = 0
    slopes = None if grad_slopes is None else np.zeros(len(grad_slopes))
    sinks = None if grad_sinks is None else np.zeros(len(grad_sinks))
    batch, heads, num_queries, dim = query.shape
    work = 2 * batch * heads * num_queries * key.shape[2] * (dim + value.shape[3])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for q, k, own in sequences(spec):
            bias = None
            if grad_bias is not None:
                bias = part_of(grad_bias, slice(None), slice(None), q, k)
            _Gradients(
                _rows(grad_query, q),
                _rows(grad_key, k),
                _rows(grad_value, k),
                bias,
                slopes,
                sinks,
                own,
            ).add(
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                out[:, :, q],
                lse[:, :, q],
                grad_out[:, :, q],
                _rows(grad_lse, q),
            )
    for target, total in ((grad_slopes, slopes), (grad_sinks, sinks)):
        if target is not None:
            target[...] = total


def _rows(array: _Array | None, rows: slice) -> _Array | None:
    return None if array is None else array[:, :, rows]


class _Sum:
    """Sums of some heads' rows, in place or, for the narrow types, beside it until stored."""

    __slots__ = ("_target", "_total")

    def __init__(self, target: _Array) -> None:
        self._target = target
        dtype = _storage.compute_dtype(target)
        self._total = target if target.dtype == dtype else np.zeros(target.shape, dtype)

    def add(self, start: int, stop: int, part: _Array) -> None:
        self._total[:, :, start:stop] += part

    def store(self) -> None:
        if self._total is not self._target:
            _storage.store(self._target, self._total)


class _Gradients:
    """The wanted gradients of one sequence, summed block by block of query rows."""

    __slots__ = (
        "_bias", "_capped", "_heads", "_keys", "_query", "_scores", "_sinks", "_slopes",
        "_spec", "_sums", "_value",
    )  # fmt: skip

    def __init__(
        self,
        query: _Array | None,
        key: _Array | None,
        value: _Array | None,
        bias: _Array | None,
        slopes: _Array | None,
        sinks: _Array | None,
        spec: AttentionSpec,
    ) -> None:
        self._query, self._bias, self._slopes, self._sinks = query, bias, slopes, sinks
        self._spec = spec
        self._keys, self._value = key, value
        self._heads: tuple[slice, slice] | None = None
        self._sums: tuple[_Sum | None, _Sum | None] = (None, None)
        self._scores = self._capped = np.empty(0)

    def add(
        self,
        query: _Array,
        key: _Array,
        value: _Array,
        out: _Array,
        lse: _Array,
        grad_out: _Array,
        grad_lse: _Array | None,
    ) -> None:
        group = query.shape[1] // max(1, key.shape[1])
        for block in blocks(query, key, value, query.shape[3] + value.shape[3], self._spec):
            entries, heads, _ = block.place
            self._enter((entries, slice(heads.start // group, heads.stop // group)))
            gradient = _storage.widen(grad_out[block.place])
            delta = (gradient * _storage.widen(out[block.place])).sum(axis=-1)
            if grad_lse is not None:
                delta -= grad_lse[block.place]
            own_lse = lse[block.place]
            if self._sinks is not None:
                self._add_sinks(block, own_lse, delta)
            self._add_block(
                block,
                np.ascontiguousarray(gradient).reshape(*block.lines, value.shape[3]),
                own_lse.reshape(*block.lines, 1),
                delta.reshape(*block.lines, 1),
            )
        self._leave()

    def _enter(self, heads: tuple[slice, slice]) -> None:
        """Begin the sums of other heads where the block has others than the last one."""
        if heads == self._heads:
            return
        self._leave()
        self._heads = heads
        key, value = (None if x is None else _Sum(x[heads]) for x in (self._keys, self._value))
        self._sums = (key, value)

    def _leave(self) -> None:
        for total in self._sums:
            if total is not None:
                total.store()

    def _add_sinks(self, block: Block, lse: _Array, delta: _Array) -> None:
        assert self._sinks is not None
        assert self._spec.sink_logits is not None
        heads = block.place[1]
        gap = self._spec.sink_logits[heads, np.newaxis] - zero_point(lse)
        share = np.exp(np.minimum(gap, 0))
        lost = np.where(share == 0, 0, share * delta)
        self._sinks[heads] -= lost.sum(axis=(0, 2), dtype=np.float64)

    def _add_block(self, block: Block, gradient: _Array, lse: _Array, delta: _Array) -> None:
        if len(self._scores) < block.tile_size:
            self._scores = np.empty(block.tile_size, gradient.dtype)
            if self._spec.softcap is not None:
                self._capped = np.empty_like(self._scores)
        softcap = self._spec.softcap
        capped = None if softcap is None else self._capped
        key, value = self._sums
        total = np.zeros(block.query.shape, gradient.dtype)
        origin, doubtful = zero_point(lse), bool(np.isnan(lse).any())
        scores_matter = any(
            x is not None for x in (self._query, self._keys, self._bias, self._slopes)
        )
        for tile in block.tiles(capped):
            weights = tile.scores
            # A hidden key weighs 0 beside an L of NaN, too.
            hidden = weights == -np.inf if doubtful else None
            weights -= origin
            # Scores that are computed anew may exceed L by their rounding.
            np.minimum(weights, 0, out=weights)
            np.exp(weights, out=weights)
            if hidden is not None:
                weights[hidden] = 0
            if value is not None:
                part = product(weights.swapaxes(-1, -2), gradient)
                value.add(tile.start, tile.stop, part)
            if not scores_matter:
                continue
            grad = self._scores[: weights.size].reshape(weights.shape)
            np.matmul(gradient, block.values(tile).swapaxes(-1, -2), out=grad)
            grad -= delta
            grad *= weights
            if not np.isfinite(grad).all():
                grad[weights == 0] = 0
            self._add_scores(block, tile, grad)
            if capped is not None and softcap is not None:
                slope = capped[: grad.size].reshape(grad.shape)
                np.multiply(slope, slope, out=slope)
                np.subtract(1, slope, out=slope)
                # Beyond the softcap's own scores, those of hidden keys may be NaN.
                np.multiply(grad, slope, out=grad, where=grad != 0)
                grad *= softcap
            if self._query is not None:
                total += product(grad, block.keys(tile))
            if key is not None:
                part = product(grad.swapaxes(-1, -2), block.query)
                key.add(tile.start, tile.stop, part)
        if self._query is not None:
            total *= self._spec.scale / (1 if softcap is None else softcap)
            _storage.store(self._query[block.place], total.reshape(*block.shape, -1))

    def _add_scores(self, block: Block, tile: Tile, grad: _Array) -> None:
        """Add the gradient of a tile's scores to that of the bias and of the slopes."""
        whole = grad.reshape(*block.shape, tile.stop - tile.start)
        if self._bias is not None:
            place = (*block.place, slice(tile.start, tile.stop))
            add_summed(part_of(self._bias, *place), whole)
        if self._slopes is not None:
            weighted = whole * block.distances(tile.start, tile.stop)
            self._slopes[block.place[1]] -= weighted.sum(axis=(0, 2, 3), dtype=np.float64)

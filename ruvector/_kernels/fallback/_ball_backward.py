r"""The gradient of attention with a part in a Poincare ball, by key tiles.

With the weights P recomputed from L, W the rows ``[v, lambda x(v), lambda - 1]`` that were
averaged and G the gradient of their average ::

    dP = G W^T        dS = P * (dP - rowsum(G * O) + dL)        dW = P^T G

as in FlashAttention-2 (Dao 2023, arXiv 2307.08691). The score's part ``-delta d_c(x, y)`` goes
through ``d = 2/sqrt(c) asinh(sqrt(u))``, ``u = c |x - y|^2 / (a b)``, ``a = 1 - c|x|^2`` and
``b = 1 - c|y|^2``; with ``g = -delta dS / sqrt(c u (1 + u))`` for each pair

    dx = x sum_j (h + 2c g u / a) - sum_j h y        h = 2c g / (a b)
    dy = y sum_i (h + 2c g u / b) - sum_i h x

so that it, too, is two matrix products. Two equal points have the gradient 0 here, one of the
subgradients of a distance. What follows is a map for each row (`_ball_derivatives`).

Everything is float64: near the boundary h x and h y nearly cancel. Six matrix products of
``2 Lq Lk D`` floating-point operations and some thirty passes over the tile's pairs; memory is
a few tiles of two megabytes, and for some heads at a time the sums over the queries.

BLAS runs with one thread and every sum has one order, so that results do not depend on the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._ball import BallPart
from ruvector._kernels.fallback._ball_derivatives import conformal_rows_backward
from ruvector._kernels.fallback._ball_sums import Arrays, DistanceSums, wide, wide_rows
from ruvector._kernels.fallback._online import zero_point
from ruvector._kernels.fallback._products import add_summed, product
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.fallback._tiles import Block, Tile, blocks, part_of
from ruvector._kernels.spec import AttentionSpec, BallSpec

__all__ = ["attend_ball_backward"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Work that is always worth a limit on the threads of BLAS, which change its sums.
_ALWAYS = 1 << 62


def attend_ball_backward(
    query: _Array | None,
    key: _Array | None,
    value: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    ball_value: _Array | None,
    state: _Array | None,
    lse: _Array,
    grad_state: _Array | None,
    grad_lse: _Array | None,
    grad_weights: _Array | None,
    grad_query: _Array | None,
    grad_key: _Array | None,
    grad_value: _Array | None,
    grad_ball_query: _Array,
    grad_ball_key: _Array,
    grad_ball_value: _Array | None,
    grad_bias: _Array | None,
    grad_parameters: _Float64 | None,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None:
    """Compute the gradients of the attention state with a part in a Poincare ball.

    Parameters
    ----------
    query, key, value, ball_query, ball_key, ball_value
        As in ``softmax.attend_ball``. `ball_value` is None beside `grad_weights`.
    state : ndarray, shape (B, H, Lq, Dv + Dhv + 1), or None
        The averages that ``softmax.attend_ball`` wrote, side by side.
    lse : ndarray, shape (B, H, Lq)
        L as ``softmax.attend_ball`` wrote it.
    grad_state : ndarray, shape (B, H, Lq, Dv + Dhv + 1), or None
        Gradient of the averages.
    grad_lse : ndarray, shape (B, H, Lq), or None
        Gradient of L. None stands for zeros.
    grad_weights : ndarray, shape (B, H, Lq, Lk), or None
        Instead of values, state and its gradient: the gradient of the weights, less what
        their sum of 1 takes away, so that ``sum_j p_ij grad_weights_ij`` is 0.
    grad_query, grad_key, grad_value, grad_ball_query, grad_ball_key, grad_ball_value
        Take the gradients, in shape and dtype of the arrays that are given; the last axis
        contiguous. No two overlap.
    grad_bias : ndarray, shape (B, H, Lq, Lk), or None
        The gradient of the bias is added to it, summed over the axes along which it has
        length 1 instead.
    grad_parameters : ndarray of float64, shape (3,), or None
        Takes the gradients of ``spec.scale``, ``ball.distance_scale`` and
        ``ball.curvature``.
    spec : AttentionSpec
        As in ``softmax.attend_ball``; without softcap, slopes, sinks and rotary positions.
    ball : BallSpec
        How rows are read as points, and what their distance counts.
    threads : int
        How many threads may be used. One is.
    """
    if query is None or key is None:
        query, key = ball_query[..., :0], ball_key[..., :0]
    arrays = Arrays(query, key, value, ball_query, ball_key, ball_value)
    targets = Arrays(
        grad_query, grad_key, grad_value, grad_ball_query, grad_ball_key, grad_ball_value
    )
    for target in targets:
        if target is not None:
            target[...] = 0
    with blas_threads(1, _ALWAYS), np.errstate(all="ignore"):
        total = _Gradients(arrays, targets, grad_bias, spec, ball, grad_parameters is not None)
        total.add(state, lse, grad_state, grad_lse, grad_weights)
        if grad_parameters is not None:
            grad_parameters[...] = total.parameters()


class _Heads:
    """Keys and values of some heads, and the sums of their gradients over the queries."""

    __slots__ = ("distances", "keys", "of_keys", "of_rows", "place", "rows")

    def __init__(self, arrays: Arrays, place: tuple[slice, slice], ball: BallSpec) -> None:
        assert arrays.key is not None
        self.place = place
        self.keys = wide(arrays.key[place])
        self.of_keys = np.zeros_like(self.keys)
        self.distances = DistanceSums(arrays.ball_key[place].shape)
        self.rows = np.empty((*self.keys.shape[:3], 0))
        if arrays.ball_value is not None:
            value = None if arrays.value is None else arrays.value[place]
            self.rows = wide_rows(value, arrays.ball_value[place], ball)
        self.of_rows = np.zeros_like(self.rows)


class _Gradients:
    """The gradients of one call, summed block by block of query rows."""

    __slots__ = (
        "_arrays", "_ball", "_bias", "_curvature", "_distances", "_ratios", "_scale", "_spec",
        "_targets", "_wanted",
    )  # fmt: skip

    def __init__(
        self,
        arrays: Arrays,
        targets: Arrays,
        bias: _Array | None,
        spec: AttentionSpec,
        ball: BallSpec,
        wanted: bool,
    ) -> None:
        self._arrays, self._targets, self._bias = arrays, targets, bias
        self._spec, self._ball, self._wanted = spec, ball, wanted
        self._scale = self._distances = self._curvature = 0.0
        self._ratios = np.empty(0)

    def parameters(self) -> tuple[float, float, float]:
        """Give the gradients of scale, distance scale and curvature."""
        c, counted = self._ball.curvature, self._ball.distance_scale
        curvature = self._curvature + counted / (2 * c) * self._distances
        return self._scale, -self._distances, curvature

    def add(
        self,
        state: _Array | None,
        lse: _Array,
        grad_state: _Array | None,
        grad_lse: _Array | None,
        grad_weights: _Array | None,
    ) -> None:
        arrays = self._arrays
        query, key = arrays.query, arrays.key
        assert query is not None
        assert key is not None
        part = BallPart(arrays.ball_query, arrays.ball_key, None, self._ball)
        group = query.shape[1] // max(1, key.shape[1])
        width = 0 if grad_state is None else grad_state.shape[3]
        heads: _Heads | None = None
        for block in blocks(query, key, None, width, self._spec, part):
            entries, own, _ = block.place
            place = entries, slice(own.start // group, own.stop // group)
            if heads is None or heads.place != place:
                if heads is not None:
                    self._leave(heads)
                heads = _Heads(arrays, place, self._ball)
            gradient = None
            delta = np.zeros(block.shape)
            if grad_state is not None:
                assert state is not None
                gradient = grad_state[block.place].astype(np.float64)
                delta = (gradient * state[block.place]).sum(axis=-1)
                gradient = gradient.reshape(*block.lines, width)
            if grad_lse is not None:
                delta -= grad_lse[block.place]
            self._add_block(
                block,
                heads,
                gradient,
                None if grad_weights is None else grad_weights[block.place],
                lse[block.place].reshape(*block.lines, 1),
                delta.reshape(*block.lines, 1),
            )
        if heads is not None:
            self._leave(heads)

    def _add_block(
        self,
        block: Block,
        heads: _Heads,
        gradient: _Float64 | None,
        grad_weights: _Array | None,
        lse: _Array,
        delta: _Float64,
    ) -> None:
        arrays, targets = self._arrays, self._targets
        assert arrays.query is not None
        if len(self._ratios) < block.tile_size:
            self._ratios = np.empty(block.tile_size)
        rows = wide(arrays.query[block.place])
        query = rows.reshape(*block.lines, rows.shape[-1])
        total = np.zeros_like(query)
        distances = DistanceSums(block.ball.queries.x.shape)
        origin, doubtful = zero_point(lse), bool(np.isnan(lse).any())
        for tile in block.tiles(ratios=self._ratios):
            weights = tile.scores
            # A hidden key weighs 0 beside an L of NaN, too.
            hidden = weights == -np.inf if doubtful else None
            weights -= origin
            # Scores that are computed anew may exceed L by their rounding.
            np.minimum(weights, 0, out=weights)
            share = np.exp(weights, dtype=np.float64)
            if hidden is not None:
                share[hidden] = 0
            here = (slice(None), slice(None), slice(tile.start, tile.stop))
            if grad_weights is not None:
                grad = grad_weights[..., tile.start : tile.stop].reshape(share.shape) - delta
            else:
                assert gradient is not None
                heads.of_rows[here] += product(share.swapaxes(-1, -2), gradient)
                grad = np.matmul(gradient, heads.rows[here].swapaxes(-1, -2))
                grad -= delta
            grad *= share
            if not np.isfinite(grad).all():
                grad[share == 0] = 0
            if self._bias is not None:
                whole = grad.reshape(*block.shape, tile.stop - tile.start)
                own = (*block.place, slice(tile.start, tile.stop))
                add_summed(part_of(self._bias, *own), whole)
            if query.shape[-1]:
                total += product(grad, heads.keys[here])
                heads.of_keys[here] += product(grad.swapaxes(-1, -2), query)
            self._add_distances(block, tile, grad, heads.distances, distances)
        if targets.query is not None:
            if self._wanted:
                lost = ~total.any(axis=-1, keepdims=True)
                self._scale += float(np.where(lost, 0, total * query).sum())
            total *= self._spec.scale
            _storage.store(targets.query[block.place], total.reshape(rows.shape))
        stored = wide(arrays.ball_query[block.place])
        of_rows, curvature = distances.pulled_back(stored, self._ball)
        # 1/a + 1/b - 1 belongs to a pair.
        self._curvature += curvature - float(distances.pairs.sum()) / self._ball.curvature
        _storage.store(targets.ball_query[block.place], of_rows)

    def _add_distances(
        self, block: Block, tile: Tile, grad: _Float64, of_keys: DistanceSums, own: DistanceSums
    ) -> None:
        """Add what the gradient of a tile's scores does through the distances."""
        c, here = self._ball.curvature, (slice(None), slice(None), slice(tile.start, tile.stop))
        queries, keys = block.ball.queries, block.ball.keys(tile.start, tile.stop)
        ratio = self._ratios[: grad.size].reshape(grad.shape)
        if not np.isfinite(ratio).all():
            ratio[grad == 0] = 0
        if self._wanted:
            distance = np.arcsinh(np.sqrt(ratio))
            distance *= grad
            self._distances += float(distance.sum()) * 2 / np.sqrt(c)
        root = np.sqrt(ratio + 1)
        np.sqrt(ratio, out=ratio)
        grad *= -self._ball.distance_scale / np.sqrt(c)
        grad /= root
        shared = grad * ratio
        mass = np.divide(grad, ratio, out=np.zeros_like(grad), where=ratio != 0)
        mass *= 2 * c / queries.inside[..., np.newaxis]
        mass /= keys.inside[..., np.newaxis, :]
        if not np.isfinite(mass).all():
            mass[grad == 0] = 0
        own.pairs += shared.sum(axis=-1)
        own.mass += mass.sum(axis=-1)
        own.others += product(mass, keys.x)
        of_keys.pairs[here] += shared.sum(axis=-2)
        of_keys.mass[here] += mass.sum(axis=-2)
        of_keys.others[here] += product(mass.swapaxes(-1, -2), queries.x)

    def _leave(self, heads: _Heads) -> None:
        """Take the sums of some heads back to their rows and store them."""
        arrays, targets, place = self._arrays, self._targets, heads.place
        if targets.key is not None:
            heads.of_keys *= self._spec.scale
            _storage.store(targets.key[place], heads.of_keys)
        stored = wide(arrays.ball_key[place])
        result, curvature = heads.distances.pulled_back(stored, self._ball)
        self._curvature += curvature
        _storage.store(targets.ball_key[place], result)
        if arrays.ball_value is None:
            return
        width = 0 if arrays.value is None else arrays.value.shape[3]
        if targets.value is not None:
            _storage.store(targets.value[place], heads.of_rows[..., :width])
        assert targets.ball_value is not None
        stored = wide(arrays.ball_value[place])
        of_rows = heads.of_rows[..., width:]
        result, curvature = conformal_rows_backward(stored, of_rows, self._ball)
        self._curvature += curvature
        _storage.store(targets.ball_value[place], result)

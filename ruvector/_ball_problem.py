"""One attention problem with a part in a Poincare ball, in the form that kernels take."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import _config, _kernels
from ._arrays import Array, cast, compute_dtype
from ._kernels.spec import AttentionSpec, BallSpec

__all__ = ["BallProblem"]

# Weights that are held at a time where means are sought under them.
_WEIGHTS = 1 << 20


class BallProblem:
    """Checked arrays and the score function between them.

    Parameters
    ----------
    flat : tuple of ndarray, or None
        Query ``(B, H, m, D)``, key and value ``(B, H, n, ...)``: storage arrays with
        contiguous rows. None where everything is in the ball.
    curved : tuple of ndarray
        The same of the part in the ball.
    mask : ndarray, shape (B, H, m, n), or None
        A broadcast view: bool, or the compute dtype for a bias.
    scale : float
        Factor on the dot products.
    ball : BallSpec
        How rows are read as points, and what a distance counts.
    """

    __slots__ = ("ball", "curved", "flat", "spec")

    def __init__(
        self,
        flat: tuple[Array, Array, Array] | None,
        curved: tuple[Array, Array, Array],
        mask: Array | None,
        scale: float,
        ball: BallSpec,
    ) -> None:
        self.flat, self.curved, self.ball = flat, curved, ball
        if mask is None:
            self.spec = AttentionSpec(scale=scale)
        elif mask.dtype == np.bool_:
            self.spec = AttentionSpec(scale=scale, mask=mask)
        else:
            self.spec = AttentionSpec(scale=scale, bias=mask)

    def attend(self, with_lse: bool) -> tuple[Array, Array | None]:
        """Return the state ``[v, lambda x(v), lambda - 1]``, averaged, and L.

        The shapes are ``(B, H, m, Dv + Dhv + 1)`` and ``(B, H, m)``.
        """
        query, key, value = self.curved
        dtype = compute_dtype(query.dtype)
        width = 0 if self.flat is None else self.flat[2].shape[3]
        state = np.empty((*query.shape[:3], width + value.shape[3] + 1), dtype)
        lse = np.empty(query.shape[:3], dtype) if with_lse else None
        flat_query, flat_key, flat_value = (None,) * 3 if self.flat is None else self.flat
        out = None if self.flat is None else state[..., :width]
        if out is not None and query.dtype != dtype:
            out = np.empty(out.shape, query.dtype)
        _kernels.softmax.attend_ball(
            flat_query,
            flat_key,
            flat_value,
            out,
            query,
            key,
            value,
            state[..., width:],
            lse,
            self.spec,
            self.ball,
            _config.current_threads(),
        )
        if out is not None and out.dtype != dtype:
            state[..., :width] = cast(out, dtype)
        return state, lse

    def lse(self) -> Array:
        """Return L alone, of shape ``(B, H, m)``."""
        query, key, value = self.curved
        part = BallProblem(self.flat, (query, key, value[..., :0]), None, 1.0, self.ball)
        part.spec = self.spec
        lse = part.attend(True)[1]
        assert lse is not None
        return lse

    def weights(self) -> Array:
        """Return the weight of every key, of shape ``(B, H, m, n)``."""
        query, key, _ = self.curved
        flat_query, flat_key, _ = (None,) * 3 if self.flat is None else self.flat
        shape = (*query.shape[:3], key.shape[2])
        weights = np.empty(shape, compute_dtype(query.dtype))
        _kernels.softmax.weights_ball(
            flat_query,
            flat_key,
            query,
            key,
            weights,
            self.spec,
            self.ball,
            _config.current_threads(),
        )
        return weights

    def frechet_means(
        self, out: Array, tolerance: float, max_iterations: int, limit: float
    ) -> float:
        """Write the Frechet means ``(B, m, Dhv)`` of a problem with one head, all in the ball.

        Returns the bound on their distance from the true means that the kernel gives.
        """
        value = self.curved[2]
        batch, _, n, width = value.shape
        num_rows, worst = out.shape[1], 0.0
        step = max(1, _WEIGHTS // max(1, n))
        points = np.empty((1, n, width), out.dtype)
        for b in range(batch):
            if b == 0 or value.strides[0]:
                rows = np.ascontiguousarray(cast(value[b, 0], out.dtype))
                c, tangent = self.ball.curvature, self.ball.tangent
                _kernels.hyperbolic.to_ball(rows, points[0], c, tangent)
            for start in range(0, num_rows, step):
                some = slice(start, start + step)
                means = np.empty((1, len(out[b, some]), width), out.dtype)
                left = _kernels.hyperbolic.frechet_mean(
                    points,
                    self.part(slice(b, b + 1), some).weights()[0],
                    means,
                    self.ball.curvature,
                    tolerance,
                    max_iterations,
                    limit,
                )
                out[b, some] = means[0]
                worst = max(worst, left)
        return worst

    def part(self, entries: slice, queries: slice) -> BallProblem:
        """Return the problem of some queries of some batch entries."""
        flat, curved = (
            None
            if arrays is None
            else (arrays[0][entries, :, queries], arrays[1][entries], arrays[2][entries])
            for arrays in (self.flat, self.curved)
        )
        assert curved is not None
        part = BallProblem(flat, curved, None, 1.0, self.ball)
        here = (entries, slice(None), queries)
        part.spec = replace(
            self.spec,
            mask=None if self.spec.mask is None else self.spec.mask[here],
            bias=None if self.spec.bias is None else self.spec.bias[here],
        )
        return part

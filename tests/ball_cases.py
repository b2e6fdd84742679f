"""Problems with a part in the ball for the softmax kernels, and how near they must come."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import reference_ball
from softmax_cases import TOLERANCES, compute_dtype, quiet, to_float64, to_storage

from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec, BallSpec

# A part in a thousand of the state's largest entry is far off; these are a few roundings of
# float32 over weights that carry the rounding of the scores.
STATE = {"float32": 1e-5, "float64": 1e-10, "float16": 1e-5, "bfloat16": 2e-2}
# Scores of several tens lose that many units in the last place.
SCORES = {"float32": 2e-5, "float64": 1e-10, "float16": 2e-5, "bfloat16": 2e-3}


@dataclass
class BallCase:
    """Arguments of ``attend_ball``; without the flat part where its arrays are None."""

    flat: tuple
    curved: tuple
    spec: AttentionSpec
    ball: BallSpec
    dtype: str

    def with_spec(self, **changes):
        """Change the score function or the visible set."""
        return replace(self, spec=replace(self.spec, **changes))

    def reference(self):
        """Compute (out, state, lse, weights) in float64."""
        options = {field.name: getattr(self.spec, field.name) for field in fields(self.spec)}
        options = {name: option for name, option in options.items() if option is not None}
        flat = (None if a is None else to_float64(a) for a in self.flat)
        return reference_ball.attention(
            *(to_float64(a) for a in self.curved),
            curvature=self.ball.curvature,
            distance_scale=self.ball.distance_scale,
            tangent=self.ball.tangent,
            **dict(zip(("query", "key", "value"), flat, strict=True)),
            **options,
        )

    def attend(self, threads=1):
        """Run the kernel in use; returns (out or None, state, lse)."""
        shape = self.curved[0].shape[:3]
        dtype = compute_dtype(self.dtype)
        out = None
        if self.flat[0] is not None:
            out = to_storage(np.full((*shape, self.flat[2].shape[3]), np.nan), self.dtype)
        state = np.full((*shape, self.curved[2].shape[3] + 1), np.nan, dtype)
        lse = np.full(shape, np.nan, dtype)
        with quiet():
            _kernels.softmax.attend_ball(
                *self.flat, out, *self.curved, state, lse, self.spec, self.ball, threads
            )
        return out, state, lse

    def weights(self, threads=1):
        """Run the kernel of the weights."""
        shape = (*self.curved[0].shape[:3], self.curved[1].shape[2])
        weights = np.full(shape, np.nan, compute_dtype(self.dtype))
        with quiet():
            _kernels.softmax.weights_ball(
                *self.flat[:2], *self.curved[:2], weights, self.spec, self.ball, threads
            )
        return weights

    def check(self, threads=1):
        """Compare the kernels in use with the reference."""
        out, state, lse = self.attend(threads)
        expected, expected_state, expected_lse, expected_weights = self.reference()
        bound = SCORES[self.dtype]
        np.testing.assert_allclose(lse, expected_lse, rtol=bound, atol=bound)
        largest = np.abs(expected_state).max(initial=1, where=np.isfinite(expected_state))
        np.testing.assert_allclose(
            state, expected_state, rtol=STATE[self.dtype], atol=STATE[self.dtype] * largest
        )
        if out is not None:
            rtol = 10 * TOLERANCES[self.dtype].rtol
            np.testing.assert_allclose(to_float64(out), expected, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(
            self.weights(threads), expected_weights, rtol=10 * bound, atol=bound
        )


def ball_case(
    seed=0,
    *,
    batch=1,
    heads=2,
    key_heads=None,
    num_queries=5,
    num_keys=9,
    dim=6,
    dim_v=None,
    flat=8,
    flat_v=7,
    dtype="float32",
    radius=0.6,
    curvature=1.0,
    distance_scale=0.7,
    tangent=False,
    **spec,
):
    """Make a case; norms are about `radius`, `flat=None` leaves the flat part out."""
    rng = np.random.default_rng(seed)
    key_heads = heads if key_heads is None else key_heads
    dim_v = dim if dim_v is None else dim_v

    def arrays(width, width_v, scale):
        return tuple(
            to_storage(scale * rng.standard_normal((batch, h, length, w)), dtype)
            for h, length, w in (
                (heads, num_queries, width),
                (key_heads, num_keys, width),
                (key_heads, num_keys, width_v),
            )
        )

    curved = arrays(dim, dim_v, radius / np.sqrt(dim * curvature))
    return BallCase(
        (None,) * 3 if flat is None else arrays(flat, flat_v, 1.0),
        curved,
        AttentionSpec(scale=0.3, **spec),
        BallSpec(curvature, distance_scale, tangent),
        dtype,
    )

"""Random problems for the softmax kernels, with any subset of the features."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from softmax_cases import STORAGE, compute_dtype, problem


def _some(strategy):
    return st.none() | strategy


@st.composite
def problems(draw):
    """Draw a problem with any subset of the features."""
    dtype = draw(st.sampled_from(STORAGE))
    ragged = draw(st.booleans())
    batch = 1 if ragged else draw(st.integers(1, 2))
    key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = key_heads * group
    num_queries, num_keys = draw(st.integers(1, 40)), draw(st.integers(0, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    compute = compute_dtype(dtype)
    shape = (batch, heads, num_queries, num_keys)

    def repeating(make):
        repeats = draw(st.tuples(*[st.booleans()] * 4))
        kept = tuple(1 if r else n for r, n in zip(repeats, shape, strict=True))
        return np.broadcast_to(make(kept), shape)

    spec = {
        "softcap": draw(_some(st.sampled_from([1.0, 5.0]))),
        "causal": draw(st.booleans()),
        "bottom_right": draw(st.booleans()),
        "left": draw(st.sampled_from([-1, 0, 2, 17])),
        "right": draw(st.sampled_from([-1, 0, 3, 20])),
        "num_sinks": draw(st.sampled_from([0, 0, 1, 4])),
        "symmetric": draw(st.booleans()),
    }
    if draw(st.booleans()):
        spec["slopes"] = rng.random(heads).astype(compute)
    if draw(st.booleans()):
        spec["sink_logits"] = rng.standard_normal(heads).astype(compute)
    if draw(st.booleans()):
        spec["bias"] = repeating(
            lambda kept: np.where(
                rng.random(kept) < 0.2, -np.inf, rng.standard_normal(kept)
            ).astype(compute)
        )
    if draw(st.booleans()):
        spec["mask"] = repeating(lambda kept: rng.random(kept) < 0.6)
    if draw(st.booleans()):
        spec["positions"] = rng.integers(-3, num_keys + 5, num_queries)
    if ragged:
        cuts = draw(st.integers(0, 3))
        spec["cu_seqlens_q"], spec["cu_seqlens_k"] = (
            np.array([0, *sorted(rng.integers(0, n + 1, cuts)), n], np.int64)
            for n in (num_queries, num_keys)
        )
    return problem(
        draw(st.integers(0, 2**32 - 1)),
        batch=batch,
        heads=heads,
        key_heads=key_heads,
        num_queries=num_queries,
        num_keys=num_keys,
        dim=draw(st.integers(1, 20)),
        dim_v=draw(st.integers(1, 20)),
        dtype=dtype,
        **spec,
    )

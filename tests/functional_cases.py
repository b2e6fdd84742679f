"""What ``scaled_dot_product_attention`` must return, from the float64 reference."""

from __future__ import annotations

from math import prod

import numpy as np
import reference

TOLERANCES = {"float32": (2e-5, 4e-6), "float64": (1e-12, 1e-12), "float16": (2e-3, 2e-3)}


def expected(
    query,
    key,
    value,
    attn_mask=None,
    is_causal=False,
    *,
    scale=None,
    causal_alignment="top_left",
    window=None,
    num_sink_tokens=0,
    sink_logits=None,
    softcap=None,
    alibi_slopes=None,
    **ignored,
):
    """Compute (out, lse, weights) with the axes of the public function."""
    ndim = max(query.ndim, key.ndim, value.ndim)
    query, key, value = (x[None] if x.ndim == 2 else x for x in (query, key, value))
    heads, key_heads = query.shape[-3], max(key.shape[-3], value.shape[-3])
    if heads == 1:
        heads = key_heads
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))

    def four_axes(x, heads):
        whole = np.broadcast_to(x, (*batch, heads, *x.shape[-2:]))
        return whole.reshape(prod(batch), heads, *x.shape[-2:])

    q, k, v = four_axes(query, heads), four_axes(key, key_heads), four_axes(value, key_heads)
    spec = {
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "causal": is_causal,
        "bottom_right": causal_alignment == "bottom_right",
        "num_sinks": num_sink_tokens,
        "softcap": softcap,
        "sink_logits": sink_logits,
        "slopes": alibi_slopes,
    }
    if window is not None:
        spec["left"], spec["right"] = (-1 if side is None else side for side in window)
    if attn_mask is not None:
        scores = (*batch, heads, q.shape[2], k.shape[2])
        mask = np.broadcast_to(attn_mask, scores).reshape(prod(batch), *scores[-3:])
        spec["mask" if mask.dtype == bool else "bias"] = mask
    out, lse, weights = reference.attention(q, k, v, **spec)
    leading = (*batch, heads) if ndim > 2 else ()
    return tuple(x.reshape(*leading, *x.shape[2:]) for x in (out, lse, weights))


def close(got, wanted, dtype="float32"):
    """Assert that numbers are as near as their dtype allows."""
    rtol, atol = TOLERANCES[np.dtype(dtype).name]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=rtol, atol=atol)

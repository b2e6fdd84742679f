"""Attention written down row by row in float64, for the tests to compare with.

Nothing here knows the package: scores are materialised, hidden keys and values are never
touched, and every row is a softmax over the list of keys that it sees.
"""

from __future__ import annotations

import numpy as np
import reference_rotary


def attention(
    query,
    key,
    value,
    *,
    scale,
    extra=None,
    softcap=None,
    causal=False,
    bottom_right=False,
    left=-1,
    right=-1,
    num_sinks=0,
    symmetric=False,
    slopes=None,
    sink_logits=None,
    bias=None,
    mask=None,
    positions=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    rotary=None,
    key_scales=None,
    value_scales=None,
):
    """Compute the state and the weights of every query row.

    Parameters
    ----------
    query, key, value : array_like, shapes (B, H, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv)
        Numbers, taken as float64.
    extra : array_like, shape (B, H, Lq, Lk), optional
        Added to the scaled dot products before anything else.
    scale, softcap, causal, bottom_right, left, right, num_sinks, symmetric, slopes, \
sink_logits, bias, mask, positions, cu_seqlens_q, cu_seqlens_k, rotary, \
key_scales, value_scales
        The fields of ``ruvector._kernels.spec.AttentionSpec``. Ragged problems have B = 1.

    Returns
    -------
    out : ndarray, shape (B, H, Lq, Dv)
    lse : ndarray, shape (B, H, Lq)
    weights : ndarray, shape (B, H, Lq, Lk)
        0 where hidden; in ragged problems also outside of a row's own sequence.
    """
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    if key_scales is not None:
        key = key * np.asarray(key_scales, np.float64)[..., None]
    if value_scales is not None:
        value = value * np.asarray(value_scales, np.float64)[..., None]
    if rotary is not None:
        how = rotary.table, rotary.neighbours
        query = reference_rotary.turned_by(query, rotary.query_positions, *how)
        key = reference_rotary.turned_by(key, rotary.key_positions, *how)
    batch, heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    group = heads // key.shape[1]
    out = np.zeros((batch, heads, num_queries, value.shape[3]))
    lse = np.full((batch, heads, num_queries), -np.inf)
    weights = np.zeros((batch, heads, num_queries, num_keys))

    if cu_seqlens_q is None:
        sequences = [(0, num_queries, 0, num_keys)]
    else:
        q, k = [int(n) for n in cu_seqlens_q], [int(n) for n in cu_seqlens_k]
        sequences = list(zip(q[:-1], q[1:], k[:-1], k[1:], strict=True))

    with np.errstate(all="ignore"):
        for q_start, q_stop, k_start, k_stop in sequences:
            j = np.arange(k_stop - k_start)
            offset = (k_stop - k_start) - (q_stop - q_start) if bottom_right else 0
            for b, h, i in np.ndindex(batch, heads, q_stop - q_start):
                row = q_start + i
                pos = i + offset if positions is None else int(positions[row])
                visible = np.ones(len(j), bool)
                if left >= 0:
                    visible &= j >= pos - left
                if right >= 0:
                    visible &= j <= pos + right
                visible |= j < num_sinks
                if symmetric and pos < num_sinks:
                    visible[:] = True
                if causal:
                    visible &= j <= pos
                if mask is not None:
                    visible &= mask[b, h, row, k_start:k_stop]
                if bias is not None:
                    visible &= bias[b, h, row, k_start:k_stop] != -np.inf
                seen = np.flatnonzero(visible)

                scores = scale * (key[b, h // group, k_start + seen] @ query[b, h, row])
                if extra is not None:
                    scores = scores + extra[b, h, row, k_start + seen]
                if softcap is not None:
                    scores = softcap * np.tanh(scores / softcap)
                if slopes is not None:
                    scores = scores - float(slopes[h]) * np.abs(pos - seen)
                if bias is not None:
                    scores = scores + np.asarray(bias[b, h, row, k_start + seen], np.float64)
                logits = scores
                if sink_logits is not None:
                    logits = np.append(scores, float(sink_logits[h]))
                top = logits.max(initial=-np.inf)
                if top == -np.inf:
                    continue
                total = np.exp(logits - top).sum()
                weight = np.exp(scores - top) / total
                out[b, h, row] = weight @ value[b, h // group, k_start + seen]
                lse[b, h, row] = top + np.log(total)
                weights[b, h, row, k_start + seen] = weight
    return out, lse, weights


def merge(outputs, lses):
    """Merge the states of disjoint key sets, shapes (P, R, Dv) and (P, R), in float64."""
    outputs, lses = np.asarray(outputs, np.float64), np.asarray(lses, np.float64)
    out = np.zeros(outputs.shape[1:])
    lse = np.full(lses.shape[1:], -np.inf)
    for row in range(lses.shape[1]):
        parts = [p for p in range(len(lses)) if lses[p, row] != -np.inf]
        if parts:
            top = max(lses[p, row] for p in parts)
            total = sum(np.exp(lses[p, row] - top) for p in parts)
            out[row] = sum(np.exp(lses[p, row] - top) / total * outputs[p, row] for p in parts)
            lse[row] = top + np.log(total)
    return out, lse

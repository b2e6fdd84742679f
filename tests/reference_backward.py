"""The gradient of attention written down row by row in float64, for the tests.

Nothing here knows the package: the weights come from the forward reference, and every row
sends gradients to the keys that it sees and to nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import reference


class Gradients(NamedTuple):
    """What `gradients` returns; `bias` has the shape of the scores."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    slopes: np.ndarray
    sinks: np.ndarray


def gradients(query, key, value, grad_out, grad_lse=None, **spec):
    """Compute the gradient of ``sum(out * grad_out) + sum(lse * grad_lse)``.

    Parameters
    ----------
    query, key, value, **spec
        As in `reference.attention`.
    grad_out : array_like, shape (B, H, Lq, Dv)
    grad_lse : array_like, shape (B, H, Lq), optional

    Returns
    -------
    Gradients
        In float64. `slopes` and `sinks` are what they would be for slopes and sink logits
        that are given; a sink of -inf has gradient 0.
    """
    query, key, value, grad_out = (
        np.asarray(a, np.float64) for a in (query, key, value, grad_out)
    )
    _, lse, weights = reference.attention(query, key, value, **spec)
    heads, num_queries = query.shape[1:3]
    group = heads // key.shape[1]
    if grad_lse is None:
        grad_lse = np.zeros(lse.shape)
    scale, softcap, sinks = spec["scale"], spec.get("softcap"), spec.get("sink_logits")
    positions, local = _places(num_queries, key.shape[2], spec)
    result = Gradients(
        *(np.zeros(a.shape) for a in (query, key, value, weights)),
        np.zeros(heads),
        np.zeros(heads),
    )
    with np.errstate(all="ignore"):
        for b, h, i in np.ndindex(lse.shape):
            seen = np.flatnonzero(weights[b, h, i])
            weight, kv = weights[b, h, i, seen], h // group
            grad_weight = value[b, kv, seen] @ grad_out[b, h, i]
            delta = weight @ grad_weight - grad_lse[b, h, i]
            grad = weight * (grad_weight - delta)
            if sinks is not None and sinks[h] != -np.inf:
                result.sinks[h] -= np.exp(float(sinks[h]) - lse[b, h, i]) * delta
            result.value[b, kv, seen] += weight[:, None] * grad_out[b, h, i]
            result.bias[b, h, i, seen] = grad
            result.slopes[h] -= grad @ np.abs(positions[i] - local[seen])
            if softcap is not None:
                products = scale * (key[b, kv, seen] @ query[b, h, i])
                grad = grad * (1 - np.tanh(products / softcap) ** 2)
            result.query[b, h, i] = scale * (grad @ key[b, kv, seen])
            result.key[b, kv, seen] += scale * grad[:, None] * query[b, h, i]
    return result


def _places(num_queries, num_keys, spec):
    """Give the position of every query, and the index of every key in its sequence."""
    positions, local = np.arange(num_queries), np.arange(num_keys)
    ends_q, ends_k = spec.get("cu_seqlens_q"), spec.get("cu_seqlens_k")
    if ends_q is None:
        ends_q, ends_k = [0, num_queries], [0, num_keys]
    for s in range(len(ends_q) - 1):
        rows, keys = slice(ends_q[s], ends_q[s + 1]), slice(ends_k[s], ends_k[s + 1])
        lengths = rows.stop - rows.start, keys.stop - keys.start
        offset = lengths[1] - lengths[0] if spec.get("bottom_right") else 0
        positions[rows] = np.arange(lengths[0]) + offset
        local[keys] = np.arange(lengths[1])
    if spec.get("positions") is not None:
        positions = np.asarray(spec["positions"])
    return positions, local

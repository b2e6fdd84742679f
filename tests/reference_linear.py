"""Linear attention written down row by row in float64, for the tests to compare with.

Nothing here knows the package: every row lists the keys that it sees, and their weights are
products of features that are computed for that row alone.
"""

from __future__ import annotations

import numpy as np


def features(x, projection, kernel, scale):
    """Give the exponents of FAVOR+ features, or the features themselves for other kernels."""
    x = scale * np.asarray(x, np.float64)
    y = x @ np.asarray(projection, np.float64).T
    if kernel == "softmax":
        return y - 0.5 * (x * x).sum(axis=-1, keepdims=True)
    if kernel == "relu":
        return np.maximum(y, 0)
    return np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))


def row(q, k, values, bias, *, kernel, epsilon, gain):
    """Compute (out, lse, weights) of one query from what `features` gives, for visible keys."""
    if len(k) == 0:
        return np.zeros(values.shape[-1]), -np.inf, np.zeros(0)
    shift = 0.0
    if kernel == "softmax":
        k = k + bias[:, None]
        shift = q.max() + k.max()
        q = np.exp(q - q.max()) + epsilon
        k = np.exp(k - k.max()) + epsilon
    else:
        q = q + epsilon
        k = (k + epsilon) * np.exp(bias[:, None])
    weights = gain * (k @ q)
    total = weights.sum()
    return weights @ values / total, np.log(total) + shift, weights / total


def attention(
    query, key, value, projection, *, kernel, scale, epsilon, gain, bias=None, causal=False
):
    """Compute the state and the weights of every query row.

    Parameters are those of the kernels: query ``(B, H, Lq, D)``, key ``(B, H, Lk, D)``, value
    ``(B, H, Lk, Dv)``, bias ``(B, Lk)`` with -inf at hidden keys. Causal queries are the last
    positions.

    Returns
    -------
    out : ndarray, shape (B, H, Lq, Dv)
    lse : ndarray, shape (B, H, Lq)
    weights : ndarray, shape (B, H, Lq, Lk)
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    batch, heads, num_queries, _ = query.shape
    num_keys = key.shape[2]
    if bias is None:
        bias = np.zeros((batch, num_keys))
    bias = np.asarray(bias, np.float64)
    out = np.zeros((batch, heads, num_queries, value.shape[3]))
    lse = np.full((batch, heads, num_queries), -np.inf)
    weights = np.zeros((batch, heads, num_queries, num_keys))
    options = {"kernel": kernel, "epsilon": epsilon, "gain": gain}
    phi_q, phi_k = (features(x, projection, kernel, scale) for x in (query, key))
    for b, h, i in np.ndindex(batch, heads, num_queries):
        visible = bias[b] > -np.inf
        if causal:
            visible = visible & (np.arange(num_keys) <= i + num_keys - num_queries)
        seen = np.flatnonzero(visible)
        out[b, h, i], lse[b, h, i], weights[b, h, i, seen] = row(
            phi_q[b, h, i], phi_k[b, h, seen], value[b, h, seen], bias[b, seen], **options
        )
    return out, lse, weights


def state(key, value, projection, *, kernel, scale, bias=None, epsilon=0.0, **_):
    """Compute (numerator, denominator, stabiliser, value_sum, num_keys) of one sequence."""
    key, value = np.asarray(key, np.float64), np.asarray(value, np.float64)
    bias = np.zeros(len(key)) if bias is None else np.asarray(bias, np.float64)
    key, value, bias = (x[bias > -np.inf] for x in (key, value, bias))
    phi = features(key, projection, kernel, scale)
    stabiliser = 0.0
    if kernel == "softmax":
        phi = phi + bias[:, None]
        stabiliser = phi.max(initial=-np.inf)
        phi = np.exp(phi - stabiliser)
    else:
        phi = (phi + epsilon) * np.exp(bias[:, None])
    return phi.T @ value, phi.sum(axis=0), stabiliser, value.sum(axis=0), len(key)

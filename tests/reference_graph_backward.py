"""The gradient of GATv2 edge by edge, in float64: plain loops, nothing recomputed.

Independent of the package. The weights come from L as it is given, so that a caller may add
other keys to a softmax, and a bias of each edge to its scores in every head.
"""

from __future__ import annotations

import numpy as np
from reference_graph import rows_of


def gradients(
    left,
    messages,
    right,
    att,
    indptr,
    indices,
    lse,
    delta,
    grad_sums,
    *,
    features=None,
    edge_weight=None,
    bias=None,
    shift=None,
    negative_slope=0.2,
):
    """Return the gradients by name, those of left and messages apart."""
    heads, channels = att.shape
    result = {
        "left": np.zeros(left.shape),
        "messages": np.zeros(messages.shape),
        "right": np.zeros(right.shape),
        "edges": None if features is None else np.zeros(features.shape),
        "bias": np.zeros(len(indices)),
        "att": np.zeros(att.shape),
        "weight": None if features is None else np.zeros(edge_weight.shape),
    }
    for i, edges in enumerate(rows_of(indptr, indices)):
        for j, e in edges:
            u = left[j] + right[i] + (0 if shift is None else shift)
            if features is not None:
                u = u + (edge_weight @ features[e]).reshape(heads, channels)
            slope = np.where(u > 0, 1.0, negative_slope)
            score = (att * slope * u).sum(axis=1) + (0 if bias is None else bias[e])
            p = np.where(lse[i] == -np.inf, 0.0, np.exp(score - lse[i]))
            ds = p * ((grad_sums[i] * messages[j]).sum(axis=1) - delta[i])
            du = ds[:, None] * att * slope
            result["left"][j] += du
            result["right"][i] += du
            result["messages"][j] += p[:, None] * grad_sums[i]
            result["bias"][e] = ds.sum()
            result["att"] += ds[:, None] * slope * u
            if features is not None:
                result["edges"][e] = du.ravel() @ edge_weight
                result["weight"] += np.outer(du.ravel(), features[e])
    return result

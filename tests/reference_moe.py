"""A mixture of experts written down query by query in float64, for the tests to compare with.

Nothing here knows the package. Experts themselves come from the other references.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import reference
import reference_ball
import reference_linear


def ranking(logits):
    """List the experts of one query, best first; of equals the lowest index."""
    return sorted(range(len(logits)), key=lambda e: (-logits[e], e))


def serve(orders, count, capacity):
    """Give `count` experts to every query: first choices first, then by query."""
    loads = dict.fromkeys(orders[0] if orders else [], 0)
    served = [[] for _ in orders]
    for _ in range(count):
        for order, mine in zip(orders, served, strict=True):
            for expert in order:
                if expert not in mine and loads[expert] < capacity:
                    mine.append(expert)
                    loads[expert] += 1
                    break
    return served


def capacity(factor, rows, count, experts):
    """Round the share of an expert up."""
    return math.ceil(Fraction(factor) * rows * count / experts)


def losses(logits, count):
    """Compute the load-balancing loss and the z-loss."""
    logits = np.asarray(logits, np.float64)
    experts = logits.shape[1]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    chosen = [e for row in logits for e in ranking(row)[:count]]
    fractions = [chosen.count(e) / len(chosen) for e in range(experts)]
    balance = experts * sum(fractions[e] * shares[:, e].mean() for e in range(experts))
    lse = np.log(powers.sum(axis=1)) + logits.max(axis=1)
    return balance, (lse**2).mean()


def standard(query, keys, values, **spec):
    """Compute scaled dot-product attention with one head: output and weights."""
    arrays = (x[np.newaxis, np.newaxis] for x in (query, keys, values))
    out, _, weights = reference.attention(*arrays, scale=query.shape[1] ** -0.5, **spec)
    return out[0, 0], weights[0, 0]


def hyperbolic(query, keys, values, **spec):
    """Compute attention in the ball of curvature 1, with the midpoint."""
    arrays = (x[np.newaxis, np.newaxis] for x in (query, keys, values))
    _, state, _, weights = reference_ball.attention(
        *arrays, curvature=1.0, distance_scale=1.0, scale=1.0, **spec
    )
    points = [reference_ball.midpoint(row, 1.0) for row in state[0, 0]]
    return np.array(points).reshape(len(query), values.shape[1]), weights[0, 0]


def linear(query, keys, values, projection, **spec):
    """Compute FAVOR+ attention; of a mask the first row."""
    bias = np.zeros(len(keys))
    if "mask" in spec:
        bias = np.where(spec["mask"][0, 0, 0], 0, -np.inf)
    elif "bias" in spec:
        bias = spec["bias"][0, 0, 0]
    arrays = (x[np.newaxis, np.newaxis] for x in (query, keys, values))
    out, _, weights = reference_linear.attention(
        *arrays,
        projection,
        kernel="softmax",
        scale=query.shape[1] ** -0.25,
        epsilon=1e-6,
        gain=1 / len(projection),
        bias=bias[np.newaxis],
    )
    return out[0, 0], weights[0, 0]


EXPERTS = {"standard": standard, "hyperbolic": hyperbolic, "linear": linear}


def mixture(parameters, types, count, query, keys, values, mask=None, limit=None):
    """Attend from every query through its experts.

    Parameters
    ----------
    parameters : dict of str to ndarray
        ``router.weight``, ``experts.i.query.weight``, ``experts.i.key.weight``,
        ``projection``.
    types : sequence of str
    count : int
        Experts of a query.
    query, keys, values : ndarray, shapes (m, dim), (n, dim), (n, dim_v)
    mask : ndarray, broadcastable to (m, n), optional
    limit : int, optional
        Capacity; without it there is none.

    Returns
    -------
    out : ndarray, shape (m, dim_v)
    weights : ndarray, shape (m, n)
    logits : ndarray, shape (m, experts)
    served : list of list of int
    """
    p = {name: np.asarray(x, np.float64) for name, x in parameters.items()}
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    logits = query @ p["router.weight"].T
    orders = [ranking(row) for row in logits]
    served = serve(orders, count, len(query) if limit is None else limit)
    out = np.zeros((len(query), values.shape[1]))
    weights = np.zeros((len(query), len(keys)))
    for expert, kind in enumerate(types):
        rows = [i for i, mine in enumerate(served) if expert in mine]
        if not rows:
            continue
        spec = {}
        if mask is not None:
            seen = np.broadcast_to(mask, weights.shape)[rows][np.newaxis, np.newaxis]
            spec["mask" if seen.dtype == bool else "bias"] = seen
        if kind == "linear":
            spec["projection"] = p["projection"]
        attended = EXPERTS[kind](
            query[rows] @ p[f"experts.{expert}.query.weight"].T,
            keys @ p[f"experts.{expert}.key.weight"].T,
            values,
            **spec,
        )
        for i, one, weight in zip(rows, *attended, strict=True):
            share = np.exp(logits[i, expert]) / np.exp(logits[i, served[i]]).sum()
            out[i] += share * one
            weights[i] += share * weight
    return out, weights, logits, served

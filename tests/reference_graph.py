"""GATv2 and hop distances edge by edge, in float64, and graphs to try them on.

Independent of the package: plain loops over the edges, every score in memory at once.
"""

from __future__ import annotations

from collections import deque

import numpy as np


def leaky_relu(x, slope):
    return np.where(x > 0, x, slope * x)


def rows_of(indptr, indices):
    """List the senders of each receiver with the positions of their edges."""
    return [
        [(int(indices[e]), e) for e in range(int(indptr[i]), int(indptr[i + 1]))]
        for i in range(len(indptr) - 1)
    ]


def with_loops(edges, node, num_senders, features):
    """Return (sender, feature) pairs of one receiver after PyG's rule of self-loops."""
    kept = [(j, None if features is None else features[e]) for j, e in edges if j != node]
    if node < num_senders:
        mean = None
        if features is not None:
            mean = np.mean([f for _, f in kept], axis=0) if kept else 0 * features[:1].sum(0)
        kept.append((node, mean))
    return kept


def softmax_sum(scores, messages):
    """Return sum_j softmax(scores)_j messages_j and the log-sum-exp; (0, -inf) for none."""
    if len(scores) == 0:
        return np.zeros(messages.shape[1:]), -np.inf
    top = scores.max()
    if top == -np.inf:
        return np.zeros(messages.shape[1:]), -np.inf
    powers = np.exp(scores - top)
    shares = powers / powers.sum()
    out = sum(share * message for share, message in zip(shares, messages, strict=True))
    return out, top + np.log(powers.sum())


def graph_attention(
    left,
    right,
    att,
    indptr,
    indices,
    *,
    features=None,
    edge_weight=None,
    shift=None,
    negative_slope=0.2,
    loops=False,
):
    """Return the attended sums ``(N, H, C)`` and L ``(N, H)`` of transformed nodes."""
    left, right, att = (np.asarray(x, np.float64) for x in (left, right, att))
    heads, channels = att.shape
    n = len(indptr) - 1
    out, lse = np.zeros((n, heads, channels)), np.full((n, heads), -np.inf)
    if features is not None:
        features = np.asarray(features, np.float64)
        edge_weight = np.asarray(edge_weight, np.float64)
    shift = np.zeros((heads, channels)) if shift is None else np.asarray(shift, np.float64)
    for i, edges in enumerate(rows_of(indptr, indices)):
        pairs = [(j, None if features is None else features[e]) for j, e in edges]
        if loops:
            pairs = with_loops(edges, i, len(left), features)
        if not pairs:
            continue
        scores = []
        for j, feature in pairs:
            x = right[i] + left[j] + shift
            if feature is not None:
                x = x + (edge_weight @ feature).reshape(heads, channels)
            scores.append((att * leaky_relu(x, negative_slope)).sum(-1))
        for h in range(heads):
            out[i, h], lse[i, h] = softmax_sum(
                np.array([s[h] for s in scores]), np.array([left[j, h] for j, _ in pairs])
            )
    return out, lse


def layer(parameters, config, x, indptr, indices, features=None, x_src=None):
    """Return output and L of the whole layer over a graph, from its named parameters."""
    p = {name: np.asarray(array, np.float64) for name, array in parameters.items()}
    x = np.asarray(x, np.float64)
    senders = x if x_src is None else np.asarray(x_src, np.float64)
    _, heads, channels = p["att"].shape
    w_r = p.get("lin_r.weight", p["lin_l.weight"])
    b_l = p.get("lin_l.bias", np.zeros(heads * channels))
    b_r = p.get("lin_r.bias", b_l)
    left = (senders @ p["lin_l.weight"].T + b_l).reshape(-1, heads, channels)
    right = (x @ w_r.T + b_r).reshape(-1, heads, channels)
    out, lse = graph_attention(
        left,
        right,
        p["att"][0],
        indptr,
        indices,
        features=features,
        edge_weight=p.get("lin_edge.weight"),
        negative_slope=config.negative_slope,
        loops=config.add_self_loops,
    )
    return finish(p, config, out, x), lse


def finish(p, config, out, x):
    """Concatenate or average the heads, add residual and bias."""
    width = out.shape[1] * out.shape[2]
    out = out.reshape(len(out), width) if config.concat_heads else out.mean(axis=1)
    if config.residual:
        out = out + x @ p["res.weight"].T
    return out + p["bias"] if "bias" in p else out


def node(parameters, config, query, keys, values, features=None, mask=None):
    """Return output, L ``(H,)`` and weights ``(H, n)`` of one node and its neighbours."""
    p = {name: np.asarray(array, np.float64) for name, array in parameters.items()}
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    _, heads, channels = p["att"].shape
    b_l = p.get("lin_l.bias", np.zeros(heads * channels))
    b_r = p.get("lin_r.bias", b_l)
    right = p.get("lin_r.weight", p["lin_l.weight"]) @ query + b_r
    out, lse = np.zeros((1, heads, channels)), np.zeros(heads)
    scores = np.zeros((heads, len(keys)))
    for j, key in enumerate(keys):
        x = right + p["lin_l.weight"] @ key + b_l
        if features is not None:
            x = x + p["lin_edge.weight"] @ np.asarray(features[j], np.float64)
        x = leaky_relu(x.reshape(heads, channels), config.negative_slope)
        scores[:, j] = (p["att"][0] * x).sum(-1)
        if mask is not None:
            bias = mask[j] if mask.dtype != bool else 0.0 if mask[j] else -np.inf
            scores[:, j] = -np.inf if bias == -np.inf else scores[:, j] + bias
    messages = (values @ p["lin_l.weight"].T + b_l).reshape(-1, heads, channels)
    for h in range(heads):
        out[0, h], lse[h] = softmax_sum(scores[h], messages[:, h])
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isfinite(lse)[:, None], np.exp(scores - lse[:, None]), 0.0)
    return finish(p, config, out, query[None])[0], lse, weights


def hop_distances(indptr, indices, sources, max_hops=None):
    """Return the least number of edges from any source, along the sending; -1 for none."""
    receivers = [[] for _ in range(len(indptr) - 1)]
    for i, edges in enumerate(rows_of(indptr, indices)):
        for j, _ in edges:
            receivers[j].append(i)
    distance = [-1] * len(receivers)
    queue = deque()
    for source in sources:
        if distance[source] < 0:
            distance[source] = 0
            queue.append(source)
    while queue:
        j = queue.popleft()
        if max_hops is not None and distance[j] >= max_hops:
            continue
        for i in receivers[j]:
            if distance[i] < 0:
                distance[i] = distance[j] + 1
                queue.append(i)
    return np.array(distance, np.int64)


def csr(targets, sources, n):
    order = np.argsort(targets, kind="stable")
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(targets, minlength=n), out=indptr[1:])
    return indptr, sources[order].astype(np.int64)


def graphs():
    """Name small graphs as (indptr, indices) with loops, duplicates and isolated nodes."""
    rng = np.random.default_rng(5)
    random = csr(rng.integers(0, 30, 200), rng.integers(0, 40, 200) % 37, 40)
    hub = csr(np.r_[np.zeros(9000, int), 1, 2], rng.integers(0, 6, 9002), 6)
    shares = 1 / np.arange(1, 61)
    shares /= shares.sum()
    power = csr(rng.choice(60, 900, p=shares), rng.choice(60, 900, p=shares), 60)
    chain = csr(np.arange(1, 70), np.arange(69), 70)
    star_in = csr(np.zeros(80, int), np.arange(1, 81), 81)
    star_out = csr(np.arange(1, 81), np.zeros(80, int), 81)
    return {
        "random": random,
        "no edges": (np.zeros(6, np.int64), np.zeros(0, np.int64)),
        "no nodes": (np.zeros(1, np.int64), np.zeros(0, np.int64)),
        "only loops": csr(np.arange(5), np.arange(5), 7),
        "chain": chain,
        "star, in": star_in,
        "star, out": star_out,
        "power law": power,
        "hub": hub,
    }

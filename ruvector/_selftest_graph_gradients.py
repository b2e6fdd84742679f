"""The gradients of attention along edges against their formula: cases for the self-test.

The formula is written over a dense matrix of nodes, edges counted, and so shares no form with
the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import graph
from .attention import EdgeFeaturedAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["edge_gradients"]

# Relative to 1 + |expected|: sums over some hundred edges of what forward tolerances bound.
_TOLERANCE = {"float64": 1e-11, "float32": 1e-4}

# (nodes, edges, width of a node, width of an edge, heads)
_SHAPES = ((1, 0, 4, 1, 2), (40, 160, 24, 5, 3), (30, 700, 128, 16, 8))


def edge_gradients(rng: np.random.Generator) -> Iterator[Case]:
    """Yield gradients in nodes, features and parameters, of graphs and of nodes alone."""
    for dtype, allowed in _TOLERANCE.items():
        for shape in _SHAPES:
            n, edges, width, edge_width, heads = shape
            layer = EdgeFeaturedAttention(
                node_dim=width, edge_dim=edge_width, num_heads=heads, rng=rng, dtype=dtype,
                add_self_loops=False,
            )  # fmt: skip
            x, grad = rng.standard_normal((2, n, width)).astype(dtype)
            grad_lse = rng.standard_normal((n, heads)).astype(dtype)
            present = np.zeros((n, n), bool)
            present.flat[rng.permutation(n * n)[:edges]] = True
            dense = rng.standard_normal((n, n, edge_width)).astype(dtype)
            indptr, indices, _ = graph.edges_to_csr(np.stack(np.nonzero(present)[::-1]), n)
            # L of a node without edges is -inf, whatever its gradient.
            _, got = layer.compute_graph_with_gradients(
                x, indptr, indices, grad, dense[present], grad_lse=grad_lse
            )
            query, keys, messages, features, parameters = _formula(
                layer, x, dense, present, grad, grad_lse
            )
            label = f"{dtype}, {shape}"
            yield f"x: {label}", got.x, query + keys + messages, allowed
            yield f"edge_features: {label}", got.edge_features, features[present], allowed
            for name, array in got.parameters.items():
                yield f"{name}: {label}", array, parameters[name], allowed
            _, nodes = layer.compute_with_gradients(
                x, x, x, grad, edge_features=dense, mask=present, grad_lse=grad_lse
            )
            yield f"query: {label}", nodes.query, query, allowed
            yield f"keys: {label}", nodes.keys, keys, allowed
            yield f"values: {label}", nodes.values, messages, allowed


def _formula(
    layer: EdgeFeaturedAttention,
    x: NDArray[Any],
    features: NDArray[Any],
    present: NDArray[np.bool_],
    grad: NDArray[Any],
    grad_lse: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, NDArray[Any]]]:
    p = {name: array.astype(np.float64) for name, array in layer.parameters().items()}
    x, features, grad = (a.astype(np.float64) for a in (x, features, grad))
    n, heads = len(x), layer.num_heads
    w_l, w_r, w_e = (p[f"lin_{side}.weight"] for side in ("l", "r", "edge"))
    left, right = ((x @ w.T).reshape(n, heads, -1) for w in (w_l, w_r))
    shift = (p["lin_l.bias"] + p["lin_r.bias"]).reshape(heads, -1)
    u = right[:, None] + left + (features @ w_e.T).reshape(n, n, heads, -1) + shift
    slope = np.where(u < 0, layer.negative_slope, 1)
    powers = np.exp((p["att"] * slope * u).sum(axis=-1)) * present[..., None]
    total = powers.sum(axis=1, keepdims=True)
    weights = powers / np.where(total == 0, 1, total)
    by_head = grad.reshape(n, heads, -1)
    dots = np.einsum("ihc,jhc->ijh", by_head, left)
    delta = (weights * dots).sum(axis=1) - grad_lse
    scores = weights * (dots - delta[:, None])
    inner = scores[..., None] * p["att"] * slope
    receivers, senders = (inner.sum(axis=axis).reshape(n, -1) for axis in (1, 0))
    messages = np.einsum("ijh,ihc->jhc", weights, by_head).reshape(n, -1)
    edge = inner.reshape(n, n, -1)
    seen = (by_head * (total[:, 0] > 0)[..., None]).sum(axis=0).ravel()
    parameters = {
        "att": (scores[..., None] * slope * u).sum(axis=(0, 1))[None],
        "lin_l.weight": (senders + messages).T @ x,
        "lin_l.bias": receivers.sum(axis=0) + seen,
        "lin_r.weight": receivers.T @ x,
        "lin_r.bias": receivers.sum(axis=0),
        "lin_edge.weight": np.einsum("ijk,ijd->kd", edge, features),
        "bias": grad.sum(axis=0),
    }
    return receivers @ w_r, senders @ w_l, messages @ w_l, edge @ w_e, parameters

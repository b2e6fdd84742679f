"""Attention along the edges of a graph against its formula, for the self-test.

The formula is written over a dense matrix of nodes, edges counted, and so shares no form
with the kernels; distances are powers of the matrix.
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

__all__ = ["edge_featured", "hop_distances"]

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}

# (nodes, edges, width of a node, width of an edge, heads)
_SHAPES = ((1, 0, 4, 1, 2), (40, 160, 24, 5, 3), (30, 700, 128, 16, 8))


def _dense(
    layer: EdgeFeaturedAttention,
    x: NDArray[Any],
    features: NDArray[Any],
    present: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return output and log-sum-exp over features ``(n, n, e)`` of the edges present."""
    p = {name: array.astype(np.float64) for name, array in layer.parameters().items()}
    n, heads = len(x), layer.num_heads
    left, right = (
        (x @ p[f"{side}.weight"].T + p[f"{side}.bias"]).reshape(n, heads, -1)
        for side in ("lin_l", "lin_r")
    )
    edge = (features @ p["lin_edge.weight"].T).reshape(n, n, heads, -1)
    summed = right[:, None] + left + edge
    scores = (p["att"] * np.maximum(summed, layer.negative_slope * summed)).sum(axis=-1)
    powers = np.exp(scores) * present[..., None]
    total = powers.sum(axis=1)
    mean = np.einsum("ijh,jhc->ihc", powers / total[:, None], left)
    return mean.reshape(n, -1) + p["bias"], np.log(total)


def edge_featured(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of whole graphs, and of nodes with their neighbours."""
    for dtype, allowed in _TOLERANCE.items():
        for shape in _SHAPES:
            n, edges, width, edge_width, heads = shape
            layer = EdgeFeaturedAttention(
                node_dim=width, edge_dim=edge_width, num_heads=heads, rng=rng, dtype=dtype
            )
            for name, array in layer.parameters().items():
                if name.endswith("bias"):
                    array[...] = rng.standard_normal(array.shape)
            x = rng.standard_normal((n, width)).astype(dtype)
            present = np.zeros((n, n), bool)
            present.flat[rng.permutation(n * n)[:edges]] = True
            receivers, senders = np.nonzero(present)
            indptr, indices, order = graph.edges_to_csr(np.stack([senders, receivers]), n)
            values = rng.standard_normal((len(order), edge_width)).astype(dtype)
            dense = np.zeros((n, n, edge_width))
            dense[receivers, senders] = values
            np.fill_diagonal(present, False)
            counts = np.maximum(present.sum(axis=1), 1)[:, None]
            loops = (dense * present[..., None]).sum(axis=1) / counts
            dense[np.arange(n), np.arange(n)] = loops
            np.fill_diagonal(present, True)
            expected = _dense(layer, x.astype(np.float64), dense, present)
            output = layer.compute_graph(x, indptr, indices, values[order], return_lse=True)
            label = f"{dtype}, {shape}"
            yield label, output[0], expected[0], allowed
            yield f"{label}, lse", output[1], expected[1], allowed
            mask = present
            nodes = layer.compute_with_edges(x, x, x, dense.astype(dtype), mask=mask)
            yield f"{label}, nodes", nodes, expected[0], allowed


def hop_distances(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of distances with the powers of the matrix of edges."""
    for n, edges in ((1, 0), (50, 60), (80, 300)):
        index = rng.integers(0, n, (2, edges))
        sends = np.zeros((n, n), bool)
        sends[index[0], index[1]] = True
        expected = np.full(n, -1)
        reached = np.arange(n) == 0
        for distance in range(n):
            expected[reached & (expected < 0)] = distance
            reached = reached @ sends
        indptr, indices, _ = graph.edges_to_csr(index, n)
        yield f"{n} nodes", graph.hop_distances(indptr, indices, 0), expected, 0.0

"""Attention along the edges of a graph: against torch_geometric, npm and one thread."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import ruvector
from ruvector.graph import edges_to_csr, hop_distances

from ..core import OURS, Case, Context, Curve, Row, Target
from ..peers import NPM
from ..run import sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

_NODES, _EDGES, _DIM, _HEADS, _EDGE_DIM = 20_000, 200_000, 128, 8, 16
_HUB = 1_000_000


def _flops(nodes: int, edges: int, dim: int, edge_dim: int) -> float:
    """Of both transforms, of the features' and of the weighted sums."""
    return 2.0 * dim * (2 * nodes * dim + edges * (edge_dim + 1))


def _graph(
    rng: np.random.Generator, receivers: np.ndarray, nodes: int, dim: int, edge_dim: int
) -> tuple[ruvector.EdgeFeaturedAttention, np.ndarray, list[np.ndarray]]:
    """Build a layer, its edges as pairs, and what it is called with."""
    edges = len(receivers)
    index = np.stack([rng.integers(0, nodes, edges), receivers])
    layer = ruvector.EdgeFeaturedAttention(
        node_dim=dim, edge_dim=edge_dim, num_heads=_HEADS, seed=0
    )
    x = rng.standard_normal((nodes, dim), dtype=np.float32)
    features = rng.standard_normal((edges, edge_dim), dtype=np.float32)
    indptr, indices, order = edges_to_csr(index, nodes)
    return layer, index[:, order], [x, indptr, indices, features[order]]


def _convolution(ctx: Context, layer: ruvector.EdgeFeaturedAttention) -> Any:
    torch = ctx.peers.module("torch")
    ctx.peers.module("torch_geometric")
    nn = ctx.peers.module("torch_geometric.nn")
    conv = nn.GATv2Conv(
        layer.dim, layer.out_dim // _HEADS, heads=_HEADS, edge_dim=layer.edge_dim
    )
    weights = {name: torch.from_numpy(x) for name, x in layer.state_dict().items()}
    conv.load_state_dict(weights)
    return conv


def _geometric(
    ctx: Context, layer: ruvector.EdgeFeaturedAttention, arrays: list[np.ndarray]
) -> Side:
    torch = ctx.peers.module("torch")
    conv = _convolution(ctx, layer).eval()
    arguments = [torch.from_numpy(np.ascontiguousarray(x)) for x in arrays]

    def forward() -> Any:
        with torch.inference_mode():
            return conv(*arguments)

    return Local(forward)


def _whole_graph(by_receiver: bool, ctx: Context) -> Case:
    """The other side takes edges in any order, and is faster where receivers are together."""
    rng = ctx.rng
    receivers = rng.integers(0, _NODES, _EDGES)
    layer, index, call = _graph(rng, receivers, _NODES, _DIM, _EDGE_DIM)
    order = np.arange(_EDGES) if by_receiver else rng.permutation(_EDGES)
    theirs = [call[0], index[:, order], call[3][order]]
    return Case(
        Local(functools.partial(layer.compute_graph, *call)),
        {"torch_geometric": lambda: _geometric(ctx, layer, theirs)},
    )


def _trained_geometric(
    ctx: Context,
    layer: ruvector.EdgeFeaturedAttention,
    arrays: list[np.ndarray],
    grad: np.ndarray,
) -> Side:
    torch = ctx.peers.module("torch")
    conv = _convolution(ctx, layer)
    x, index, features = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    leaves = [x.requires_grad_(), features.requires_grad_(), *conv.parameters()]
    gradient = torch.from_numpy(grad)

    def train() -> Any:
        output = conv(x, index, features)
        return output, *torch.autograd.grad(output, leaves, gradient)

    names = [name for name, _ in conv.named_parameters()]
    return Local(train, lambda result: _trained_result(result, names))


def _trained_result(result: Any, names: list[str]) -> list[np.ndarray]:
    output, x, features, *parameters = (array.detach().numpy() for array in result)
    by_name = dict(zip(names, parameters, strict=True))
    return [output, x, features, *(by_name[name] for name in sorted(by_name))]


def _trained(ctx: Context) -> Case:
    rng = ctx.rng
    layer, index, call = _graph(rng, rng.integers(0, _NODES, _EDGES), _NODES, _DIM, _EDGE_DIM)
    # Of the size that a mean over nodes has, so that sums over all of them are near 1.
    grad = rng.standard_normal((_NODES, _DIM), dtype=np.float32) / np.float32(_NODES**0.5)
    x, indptr, indices, features = call
    order = rng.permutation(_EDGES)
    theirs = [x, index[:, order], features[order]]

    def result(found: Any) -> list[np.ndarray]:
        output, gradients = found
        parameters = [array for _, array in sorted(gradients.parameters.items())]
        return [output, gradients.x, gradients.edge_features[order], *parameters]

    train = functools.partial(
        layer.compute_graph_with_gradients, x, indptr, indices, grad, features
    )
    return Case(
        Local(train, result),
        {"torch_geometric": lambda: _trained_geometric(ctx, layer, theirs, grad)},
    )


def _node(keys: int, ctx: Context) -> Case:
    dim, edge_dim = 384, 32
    rng = ctx.rng
    shapes = ((dim,), (keys, dim), (keys, dim), (keys, edge_dim))
    arrays = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    layer = ruvector.EdgeFeaturedAttention(
        node_dim=dim, edge_dim=edge_dim, num_heads=_HEADS, seed=0
    )
    call = {
        "class": "EdgeFeaturedAttention",
        "factory": "simple",
        "args": [dim, edge_dim, _HEADS],
        "method": "computeWithEdges",
    }
    return Case(
        Local(functools.partial(layer.compute_with_edges, *arrays)),
        {NPM: lambda: ctx.peers.npm().setup(arrays, **call)},
    )


def _one_thread(call: Callable[[], Any]) -> Side:
    def alone() -> Any:
        with ruvector.num_threads(1):
            return call()

    return Local(alone)


def _hub(ctx: Context) -> Case:
    """One receiver of a million edges among as many edges of others."""
    nodes = 50_000
    rng = ctx.rng
    receivers = np.concatenate([np.zeros(_HUB, np.int64), rng.integers(0, nodes, _HUB)])
    layer, _, call = _graph(rng, receivers, nodes, 64, 4)
    compute = functools.partial(layer.compute_graph, *call)
    return Case(Local(compute), {f"{OURS}, 1 thread": lambda: _one_thread(compute)})


def _networkx(index: np.ndarray, nodes: int) -> Side:
    networkx = __import__("networkx")
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(index.T.tolist())

    def call() -> np.ndarray:
        lengths = networkx.single_source_shortest_path_length(graph, 0)
        return np.array([lengths.get(node, -1) for node in range(nodes)])

    return Local(call)


def _hops(ctx: Context) -> Case:
    index = ctx.rng.integers(0, _NODES, (2, _EDGES))
    indptr, indices, _ = edges_to_csr(index, _NODES)
    return Case(
        Local(lambda: hop_distances(indptr, indices, 0)),
        {"networkx": lambda: _networkx(index, _NODES)},
    )


def rows() -> list[Row]:
    """A whole graph, one node, a hub, and distances."""
    return [
        *(
            Row(
                f"compute_graph, {_NODES} nodes, {_EDGES} edges, {_DIM}, {_EDGE_DIM}{order}",
                functools.partial(_whole_graph, by_receiver),
                {"torch_geometric": target},
                flops=_flops(_NODES, _EDGES + _NODES, _DIM, _EDGE_DIM),
            )
            for by_receiver, order, target in (
                (False, "", Target(15, 40)),
                (True, ", theirs ordered", Target()),
            )
        ),
        Row(
            f"compute_graph_with_gradients, the graph of {_EDGES} edges",
            _trained,
            {"torch_geometric": Target()},
            # A gradient has two products for each of the forward pass.
            flops=3 * _flops(_NODES, _EDGES + _NODES, _DIM, _EDGE_DIM),
        ),
        *(
            Row(
                f"compute_with_edges(384, 32 features), {keys} neighbours",
                functools.partial(_node, keys),
                {NPM: target},
                flops=2.0 * keys * 384 * (384 + 32 + _HEADS),
                # The other side scores otherwise, with weights of its own: the same work,
                # another result.
                tolerance=math.inf,
            )
            for keys, target in ((10, Target()), (100, Target()), (1000, Target(30, 100)))
        ),
        Row(
            f"compute_graph, a hub of {_HUB} edges among {2 * _HUB}, threaded",
            _hub,
            flops=_flops(50_000, 2 * _HUB + 50_000, 64, 4),
            threads=2,
        ),
        Row(f"hop_distances, {_NODES} nodes, {_EDGES} edges", _hops),
    ]


def _time_by_edges(ctx: Context, edges: int) -> dict[str, float]:
    """Time of an edge at ten edges a node, uniform and with half of them at one hub."""
    nodes = edges // 10
    rng = ctx.rng
    uniform = rng.integers(0, nodes, edges)
    hub = uniform.copy()
    hub[: edges // 2] = 0
    sides: dict[str, Side] = {}
    for name, receivers in (("uniform", uniform), ("a hub of half the edges", hub)):
        layer, _, call = _graph(rng, receivers, nodes, 64, 4)
        sides[name] = Local(functools.partial(layer.compute_graph, *call))
    timings = sample(ctx, sides)
    return {name: timing.median / edges * 1e9 for name, timing in timings.items()}


def curves() -> list[Curve]:
    """Cost of an edge by their number."""
    return [
        Curve(
            "compute_graph by edges", "edges", "ns per edge", "flat, with a hub or without",
            (10_000, 100_000, 1_000_000, 4_000_000), (10_000, 100_000), _time_by_edges,
        )
    ]  # fmt: skip

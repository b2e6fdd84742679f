"""EdgeFeaturedAttention is torch_geometric's GATv2Conv with the same weights."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector

torch = pytest.importorskip("torch")
nn = pytest.importorskip("torch_geometric.nn")

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

OPTIONS = [
    {},
    {"add_self_loops": False},
    {"concat": False},
    {"share_weights": True},
    {"residual": True},
    {"residual": True, "concat": False, "bias": False},
    {"bias": False, "negative_slope": 0.7},
    {"share_weights": True, "residual": True, "add_self_loops": False},
]


def pair(options, *, edge_dim, bipartite=False):
    """Make both layers with the same weights, biases not 0."""
    torch.manual_seed(0)
    node_dim, heads, channels = 12, 3, 5
    conv = nn.GATv2Conv(
        (node_dim, node_dim) if bipartite else node_dim,
        channels,
        heads=heads,
        edge_dim=edge_dim or None,
        **options,
    )
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.normal_()
    names = {"concat": "concat_heads"}
    fields = {names.get(name, name): value for name, value in options.items()}
    attention = ruvector.EdgeFeaturedAttention(
        node_dim=node_dim,
        edge_dim=edge_dim,
        num_heads=heads,
        out_dim=heads * channels if options.get("concat", True) else channels,
        **fields,
    )
    attention.load_state_dict(conv.state_dict())
    return conv, attention


def graph(rng, senders, receivers, edges=300):
    """Return edges with loops and duplicates; the last nodes have none."""
    return np.stack(
        [rng.integers(0, senders, edges), rng.integers(0, max(1, receivers - 5), edges)]
    )


@pytest.mark.parametrize("edge_dim", [0, 1, 4])
@pytest.mark.parametrize("options", OPTIONS)
def test_graph(options, edge_dim):
    rng = np.random.default_rng(1)
    conv, attention = pair(options, edge_dim=edge_dim)
    x = rng.standard_normal((40, 12), dtype=np.float32)
    index = graph(rng, 40, 40)
    features = rng.standard_normal((300, edge_dim), dtype=np.float32) if edge_dim else None
    indptr, indices, order = ruvector.graph.edges_to_csr(index, 40)
    out = attention.compute_graph(
        x, indptr, indices, None if features is None else features[order]
    )
    with torch.inference_mode():
        wanted = conv(
            torch.from_numpy(x),
            torch.from_numpy(index),
            None if features is None else torch.from_numpy(features),
        )
    np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("senders", "receivers"), [(25, 40), (40, 25)])
@pytest.mark.parametrize("options", OPTIONS)
def test_bipartite(options, senders, receivers):
    # GATv2Conv cannot fill in the features of loops with fewer senders than receivers.
    edge_dim = 0 if senders < receivers and options.get("add_self_loops", True) else 4
    rng = np.random.default_rng(2)
    conv, attention = pair(options, edge_dim=edge_dim, bipartite=True)
    x = rng.standard_normal((receivers, 12), dtype=np.float32)
    x_src = rng.standard_normal((senders, 12), dtype=np.float32)
    index = graph(rng, senders, receivers)
    features = rng.standard_normal((300, edge_dim), dtype=np.float32) if edge_dim else None
    indptr, indices, order = ruvector.graph.edges_to_csr(index, (senders, receivers))
    out = attention.compute_graph(
        x, indptr, indices, None if features is None else features[order], x_src=x_src
    )
    with torch.inference_mode():
        wanted = conv(
            (torch.from_numpy(x_src), torch.from_numpy(x)),
            torch.from_numpy(index),
            None if features is None else torch.from_numpy(features),
        )
    np.testing.assert_allclose(out, wanted, rtol=2e-5, atol=2e-5)


def test_torch_tensors_as_arguments():
    rng = np.random.default_rng(3)
    conv, attention = pair({}, edge_dim=4)
    index = torch.from_numpy(graph(rng, 40, 40))
    x, features = torch.randn(40, 12), torch.randn(300, 4)
    indptr, indices, order = ruvector.graph.edges_to_csr(index, 40)
    out = attention.compute_graph(x, indptr, indices, features[order])
    with torch.inference_mode():
        np.testing.assert_allclose(out, conv(x, index, features), rtol=2e-5, atol=2e-5)


def _gradients(conv, nodes, index, features, grad):
    """Return torch's gradients in nodes, features and parameters by our names."""
    leaves = [torch.from_numpy(x).requires_grad_() for x in nodes]
    edges = None if features is None else torch.from_numpy(features).requires_grad_()
    given = leaves[0] if len(leaves) == 1 else tuple(leaves)
    out = conv(given, torch.from_numpy(index), edges)
    named = dict(conv.named_parameters())
    wanted = [*leaves, *([] if edges is None else [edges]), *named.values()]
    found = torch.autograd.grad(out, wanted, torch.from_numpy(grad))
    names = [f"node {i}" for i in range(len(nodes))] + ["edges"] * (edges is not None)
    return dict(zip([*names, *named], (x.numpy() for x in found), strict=True))


def _compare(gradients, wanted, order):
    for name, gradient in gradients.parameters.items():
        true = wanted[name]
        bound = 2e-5 * max(1, np.abs(true).max())
        np.testing.assert_allclose(gradient, true, rtol=0, atol=bound, err_msg=name)
    if gradients.edge_features is not None:
        np.testing.assert_allclose(
            gradients.edge_features, wanted["edges"][order], rtol=0, atol=2e-4
        )


@pytest.mark.parametrize("edge_dim", [0, 4])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients(options, edge_dim):
    rng = np.random.default_rng(4)
    conv, attention = pair(options, edge_dim=edge_dim)
    x, index = rng.standard_normal((40, 12), dtype=np.float32), graph(rng, 40, 40)
    features = rng.standard_normal((300, edge_dim), dtype=np.float32) if edge_dim else None
    grad = rng.standard_normal((40, attention.out_dim), dtype=np.float32)
    indptr, indices, order = ruvector.graph.edges_to_csr(index, 40)
    _, gradients = attention.compute_graph_with_gradients(
        x, indptr, indices, grad, None if features is None else features[order]
    )
    wanted = _gradients(conv, [x], index, features, grad)
    np.testing.assert_allclose(gradients.x, wanted["node 0"], rtol=0, atol=2e-4)
    _compare(gradients, wanted, order)


@pytest.mark.parametrize("options", OPTIONS)
def test_bipartite_gradients(options):
    rng = np.random.default_rng(5)
    conv, attention = pair(options, edge_dim=4, bipartite=True)
    x_src, x = (rng.standard_normal((n, 12), dtype=np.float32) for n in (40, 25))
    index, features = graph(rng, 40, 25), rng.standard_normal((300, 4), dtype=np.float32)
    grad = rng.standard_normal((25, attention.out_dim), dtype=np.float32)
    indptr, indices, order = ruvector.graph.edges_to_csr(index, (40, 25))
    _, gradients = attention.compute_graph_with_gradients(
        x, indptr, indices, grad, features[order], x_src=x_src
    )
    wanted = _gradients(conv, [x_src, x], index, features, grad)
    np.testing.assert_allclose(gradients.x_src, wanted["node 0"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(gradients.x, wanted["node 1"], rtol=0, atol=2e-4)
    _compare(gradients, wanted, order)

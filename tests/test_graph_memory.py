"""Memory of attention over a graph is a few rows a node, whatever the number of edges."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from isolated import output, selecting

from ruvector import _kernels

CODE = """
import sys
from pathlib import Path
import numpy as np
import ruvector

nodes, edges, width = 1000, 300_000, 128
rng = np.random.default_rng(0)
receivers = rng.integers(0, nodes, edges)
receivers[: edges // 3] = 0
indptr, indices, _ = ruvector.graph.edges_to_csr(
    np.stack([rng.integers(0, nodes, edges), receivers]), nodes
)
x = rng.standard_normal((nodes, width), dtype=np.float32)
features = rng.standard_normal((edges, 4), dtype=np.float32)
layer = ruvector.EdgeFeaturedAttention(node_dim=width, edge_dim=4, num_heads=8, seed=0)

def call(indptr, indices, features):
    if sys.argv[1:] == ["gradients"]:
        layer.compute_graph_with_gradients(x, indptr, indices, x, features)
    else:
        layer.compute_graph(x, indptr, indices, features)

call(np.minimum(indptr, 500), indices[:500], features[:500])

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
call(indptr, indices, features)
print((status("VmHWM:") - before) // 1024)
"""


pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or not Path("/proc/self/clear_refs").exists(),
        reason="the peak of a running process can be read on Linux only",
    ),
    pytest.mark.parametrize("pair", _kernels.available(), ids=lambda pair: pair[1] or pair[0]),
]


def peak(pair, *arguments):
    """Return the MiB that a call takes beside its arguments."""
    return int(output(CODE, *arguments, **selecting(pair)))


def test_no_array_of_edges_by_channels(pair):
    # That array has 146 MiB; inputs of a node's width have half a MiB each.
    assert peak(pair) < 30


def test_nor_does_the_gradient(pair):
    # Features with those of loops, their gradient and orders of edges have 2 to 5 MiB each.
    assert peak(pair, "gradients") < 50

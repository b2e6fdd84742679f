"""``ruvector attend --kind edge-featured``: a layer from a file of its parameters."""

from __future__ import annotations

import numpy as np
import pytest
from attend_files import DIM, Files, M, N, near

import ruvector
from ruvector import _attend
from ruvector.cli import main


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture
def small_blocks(monkeypatch):
    """Split the queries into blocks of three."""
    monkeypatch.setattr(_attend, "_BLOCK_WORK", 1)
    monkeypatch.setattr(_attend, "_MIN_BLOCK", 3)


def normal(*shapes):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


@pytest.mark.parametrize("fields", [{}, {"concat_heads": False, "residual": True}])
@pytest.mark.usefixtures("backend", "small_blocks")
def test_blocks(files, fields):
    q, k, v, *features = normal((M, DIM), (N, DIM), (N, DIM), (N, 3), (M, N, 3))
    layer = ruvector.EdgeFeaturedAttention(
        node_dim=DIM, edge_dim=3, num_heads=4, out_dim=8, seed=0, **fields
    )
    parameters = str(files.folder / "parameters.npz")
    np.savez(parameters, **layer.state_dict())
    options = ["--parameters", parameters]
    near(files.attend("edge-featured", q, k, v, *options), layer.compute(q, k, v))
    for edges in features:
        wanted = layer.compute_with_edges(q, k, v, edges)
        given = ["--edge-features", files.save("edges", edges)]
        near(files.attend("edge-featured", q, k, v, *options, *given), wanted)
    one = ["--edge-features", files.save("edges", features[1][:1])]
    near(files.attend("edge-featured", q[0], k, v, *options, *one), wanted[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"att": None}, "it has no 'att'"),
        ({"bias": np.zeros(3)}, "bias must have shape"),
        ({"att": np.zeros(4)}, "not enough values to unpack"),
        ({"more": np.zeros(2)}, "state must hold"),
    ],
)
def test_bad_parameters(files, capsys, change, message):
    q, k = normal((M, DIM), (N, DIM))
    layer = ruvector.EdgeFeaturedAttention.simple(DIM, 3, 4)
    state = {**layer.state_dict(), **change}
    parameters = files.folder / "parameters.npz"
    np.savez(parameters, **{name: x for name, x in state.items() if x is not None})
    arguments = files.arguments("edge-featured", q, k, k, "--parameters", str(parameters))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"--parameters {parameters}: " in error
    assert message in error


def test_bad_features(files, capsys):
    q, k = normal((M, DIM), (N, DIM))
    np.savez(
        files.folder / "p.npz",
        **ruvector.EdgeFeaturedAttention.simple(DIM, 3, 4).state_dict(),
    )
    features = files.save("edges", np.zeros((N + 1, 3)))
    options = ["--parameters", str(files.folder / "p.npz"), "--edge-features", features]
    assert main(files.arguments("edge-featured", q, k, k, *options)) == 2
    assert f"--edge-features must have shape ({N}, e)" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_not_a_npz_file(files, capsys, content):
    q, k = normal((M, DIM), (N, DIM))
    parameters = files.folder / "parameters.npz"
    parameters.write_bytes(content)
    arguments = files.arguments("edge-featured", q, k, k, "--parameters", str(parameters))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"--parameters {parameters}: not a usable .npz file (" in error

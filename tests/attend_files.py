"""Inputs for ``ruvector attend``, its arguments, and the formula it is compared with."""

from __future__ import annotations

import numpy as np

from ruvector.cli import main

RNG = np.random.default_rng(7)
_START = RNG.bit_generator.state
M, N, DIM, DIM_V = 13, 29, 24, 16


class Files:
    """Writes inputs into a folder and runs ``attend`` on them.

    Making one starts RNG anew, so that a test draws the same numbers whatever ran before it.
    """

    def __init__(self, folder):
        RNG.bit_generator.state = _START
        self.folder = folder
        self.output = folder / "out.npy"

    def save(self, name, array):
        path = self.folder / f"{name}.npy"
        np.save(path, array)
        return str(path)

    def arguments(self, kind, query, keys, values, *options):
        arguments = ["attend", "--kind", kind, *options, "-o", str(self.output)]
        for name, array in (("query", query), ("keys", keys), ("values", values)):
            path = array if isinstance(array, str) else self.save(name, array)
            arguments += [f"--{name}", path]
        return arguments

    def attend(self, *arguments):
        assert main(self.arguments(*arguments)) == 0
        return np.load(self.output)

    def left(self):
        return sorted(p.name for p in self.folder.iterdir() if p.name not in self.inputs())

    def inputs(self):
        return {"query.npy", "keys.npy", "values.npy", "mask.npy"}


def refuse(files, capsys, *arguments):
    """Run, expect exit status 2, one line and no output; return that line."""
    try:
        status = main(files.arguments(*arguments))
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert files.left() == []
    line = captured.err.splitlines()[-1]
    assert line.startswith("ruvector attend: error: ")
    return line.removeprefix("ruvector attend: error: ")


def arrays(*shape_of_query, dtype=np.float32):
    query = RNG.standard_normal(shape_of_query or (M, DIM)).astype(dtype)
    return (
        query,
        RNG.standard_normal((N, DIM)).astype(dtype),
        RNG.standard_normal((N, DIM_V)).astype(dtype),
    )


def formula(query, keys, values, mask=True, heads=1, bias=0.0):
    """Return softmax attention in float64, head by head."""
    parts = []
    for q, k, v in zip(
        *(np.split(x.astype(np.float64), heads, axis=-1) for x in (query, keys, values)),
        strict=True,
    ):
        scores = np.where(mask, q @ k.T / np.sqrt(q.shape[-1]) + bias, -np.inf)
        top = scores.max(axis=-1, keepdims=True)
        p = np.exp(scores - np.where(np.isfinite(top), top, 0))
        total = p.sum(axis=-1, keepdims=True)
        parts.append(p @ v / np.where(total > 0, total, 1))
    return np.concatenate(parts, axis=-1)


def near(got, expected, tolerance=2e-5):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)

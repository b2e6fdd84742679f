"""``ruvector train`` and ``ruvector encode``: files in, an adapter out, and through it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from isolated import environ
from training_cases import DIM, pairs

from ruvector import _train_cli
from ruvector.cli import main
from ruvector.training import LinearAdapter, PairEncoder, load_adapter, save_adapter


class Folder:
    """Files of pairs, and the commands over them."""

    def __init__(self, path):
        self.path = path
        self.output = path / "adapter.npz"
        for name, arrays in (("", pairs(60)), ("v", pairs(30, seed=1))):
            for side, array in zip(("a", "p"), arrays, strict=True):
                self.save(name + side, array)

    def save(self, name, array):
        np.save(self.path / f"{name}.npy", array)
        return str(self.path / f"{name}.npy")

    def arguments(self, *options, **files):
        files = {"anchors": "a", "positives": "p", **files}
        arguments = ["train", "-o", str(self.output), "--epochs", "4", "--batch-size", "20"]
        for name, file in files.items():
            path = str(self.path / f"{file}.npy") if file.isalnum() else file
            arguments += [f"--{name.replace('_', '-')}", path]
        return [*arguments, *map(str, options)]

    def train(self, *options, **files):
        assert main(self.arguments(*options, **files)) == 0
        return load_adapter(self.output)

    def encode(self, adapter, x, *options):
        out = self.path / "out.npy"
        arguments = ["encode", "--adapter", str(adapter), "--input", self.save("x", x)]
        assert main([*arguments, "-o", str(out), *options]) == 0
        return np.load(out)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def refused(capsys, arguments):
    """Expect exit status 2 and nothing printed; return what the error says."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    return re.fullmatch(r"ruvector (?:train|encode): error: (.*)", line)[1]


@pytest.mark.usefixtures("backend")
class TestTrain:
    def test_learns_and_reports(self, folder, capsys):
        adapter = folder.train(
            "--learning-rate", 0.02, validation_anchors="va", validation_positives="vp"
        )
        assert isinstance(adapter, LinearAdapter)
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"12 steps, last loss \d\.\d{4}", lines[0])
        for k, line in zip((1, 5), lines[1:3], strict=True):
            before, after = re.fullmatch(
                rf"recall@{k}: (0\.\d+) before, (0\.\d+) after", line
            ).groups()
            assert float(after) > float(before)
        assert lines[3] == f"wrote {folder.output}: LinearAdapter(12, 12)"

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--rank", 3, "--dim-out", 7], "LinearAdapter(12, 7, rank=3)"),
            (["--separate"], "PairEncoder(LinearAdapter(12, 12), LinearAdapter(12, 12))"),
            (["--mine", "semi_hard", "--num-negatives", 3], "LinearAdapter(12, 12)"),
            (
                ["--gradient-clip", 0.1, "--warmup-steps", 2, "--seed", 3],
                "LinearAdapter(12, 12)",
            ),
        ],
    )
    def test_options(self, folder, options, expected):
        assert repr(folder.train(*options)) == expected

    def test_other_widths_and_negatives(self, folder):
        positives = pairs(60)[1][:, :5]
        folder.save("narrow", positives)
        folder.save("pool", pairs(40, seed=4)[1][:, :5])
        adapter = folder.train(
            "--separate", "--dim-out", 6, positives="narrow", negatives="pool"
        )
        assert repr(adapter) == "PairEncoder(LinearAdapter(12, 6), LinearAdapter(5, 6))"

    def test_same_seed_same_file(self, folder):
        files = []
        for _ in range(2):
            folder.train("--mine", "distance_weighted")
            files.append(folder.output.read_bytes())
        assert files[0] == files[1]

    def test_resumes(self, folder, capsys):
        folder.train("--checkpoint-dir", folder.path / "saved")
        capsys.readouterr()
        folder.train("--checkpoint-dir", folder.path / "saved", "--resume", "--epochs", 6)
        assert capsys.readouterr().out.startswith("18 steps, ")

    def test_plot(self, folder):
        pytest.importorskip("matplotlib")
        folder.train("--plot", folder.path / "curve.png")
        assert (folder.path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("backend")
class TestEncode:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
    def test_is_encode_of_the_adapter(self, folder, dtype, monkeypatch):
        adapter = LinearAdapter(DIM, 5)
        adapter.parameters()["weight"][:] = np.random.default_rng(0).standard_normal((5, DIM))
        save_adapter(folder.output, adapter)
        x = (10 * np.random.default_rng(1).standard_normal((50, DIM))).astype(dtype)
        expected = adapter.encode(x)
        np.testing.assert_array_equal(folder.encode(folder.output, x), expected)
        monkeypatch.setattr(_train_cli, "_BLOCK", 7 * DIM)
        got = folder.encode(folder.output, x)
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)

    def test_shapes(self, folder):
        save_adapter(folder.output, LinearAdapter(DIM, 5))
        x = pairs(3)[0]
        np.testing.assert_array_equal(folder.encode(folder.output, x[0]), x[0, :5])
        assert folder.encode(folder.output, x[:0]).shape == (0, 5)

    def test_sides(self, folder):
        pair = PairEncoder(LinearAdapter(DIM, 3), LinearAdapter(DIM, 3))
        pair.anchors.parameters()["weight"][:] = 1
        save_adapter(folder.output, pair)
        x = pairs(4)[0]
        for side in ("anchors", "positives"):
            expected = getattr(pair, side).encode(x)
            got = folder.encode(folder.output, x, "--side", side)
            np.testing.assert_array_equal(got, expected)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "files", "message"),
        [
            ([], {"anchors": "/no/a.npy"}, "--anchors /no/a.npy: No such file or directory"),
            (
                [],
                {"positives": "va"},
                "--positives .*: must fit --anchors of shape .60, 12., got",
            ),
            (
                [],
                {"validation_anchors": "va"},
                "--validation-anchors and --validation-positives",
            ),
            (["--resume"], {}, "--resume needs --checkpoint-dir"),
            (["--patience", 2], {}, "--patience needs --validation-anchors"),
            (["--rank", 13], {}, "rank must be at most 12, got 13"),
            (["--epochs", 0], {}, "num_epochs must be an integer of at least 1, got 0"),
            (["--temperature", 0], {}, "temperature must be a positive finite number"),
            (["--learning-rate", "nan"], {}, "learning_rate must be"),
            (["--mine", "best"], {}, "argument --mine: invalid choice: 'best'"),
            (["-o", "/no/such/a.npz"], {}, "--output /no/such/a.npz: there is no folder"),
            (["--plot", "/no/such/c.png"], {}, "--plot /no/such/c.png: there is no folder"),
        ],
    )
    def test_train(self, folder, capsys, options, files, message):
        assert re.match(message, refused(capsys, folder.arguments(*options, **files)))
        assert not folder.output.exists()

    def test_arrays(self, folder, capsys):
        folder.save("flat", np.ones(12))
        line = refused(capsys, folder.arguments(anchors="flat"))
        assert line == "--anchors must have shape (n, d), got (12,)"
        folder.save("empty", np.ones((0, 12)))
        line = refused(capsys, folder.arguments(anchors="empty"))
        assert line == "--anchors must not be empty, got shape (0, 12)"

    def test_nan(self, folder, capsys):
        anchors = pairs(60)[0]
        anchors[4, 4] = np.nan
        folder.save("bad", anchors)
        line = refused(capsys, folder.arguments(anchors="bad"))
        assert re.match(r"step \d: the loss is nan", line)
        assert not folder.output.exists()

    def test_encode(self, folder, capsys):
        x = folder.save("x", pairs(3)[0])
        base = ["encode", "--input", x, "-o", str(folder.path / "out.npy"), "--adapter"]
        line = refused(capsys, [*base, "/no/adapter.npz"])
        assert "No such file or directory: '/no/adapter.npz'" in line
        line = refused(capsys, [*base, x])
        assert line.startswith(f"{x}: is damaged or no file of ruvector")
        adapter = str(folder.output)
        save_adapter(adapter, LinearAdapter(5, 5))
        line = refused(capsys, [*base, adapter])
        assert line == "--input must have shape (n, 5) or (5,), got (3, 12)"
        line = refused(capsys, [*base, adapter, "--side", "anchors"])
        assert line == "--side: the adapter is the same for both sides"
        save_adapter(adapter, PairEncoder(LinearAdapter(12, 5), LinearAdapter(12, 5)))
        line = refused(capsys, [*base, adapter])
        assert line == "--side anchors or positives is needed: there are two maps"
        content = folder.output.read_bytes()
        folder.output.write_bytes(content[:-40])
        assert "is damaged" in refused(capsys, [*base, adapter])
        assert not (folder.path / "out.npy").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_leaves_a_checkpoint(folder):
    saved = folder.path / "saved"
    arguments = folder.arguments("--epochs", 100_000, "--checkpoint-dir", saved)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ruvector", *arguments],
        env=environ(),
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not (saved / "checkpoint.npz").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, error
    assert error.decode().splitlines()[-1] == "ruvector train: interrupted"
    assert os.listdir(saved) == ["checkpoint.npz"]
    assert not folder.output.exists()

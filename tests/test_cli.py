"""The command line: options, bad input, progress, and ``python -m ruvector``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from attend_files import DIM, Files, M, N, arrays, formula, near, refuse
from isolated import environ, python

import ruvector
from ruvector import _attend, _progress
from ruvector.cli import main


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


class TestBadInput:
    def test_missing_file(self, files, capsys):
        _, k, v = arrays()
        line = refuse(files, capsys, "flash", "/nowhere/q.npy", k, v)
        assert line == "--query /nowhere/q.npy: No such file or directory"

    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
    def test_not_a_npy_file(self, files, capsys, content):
        q, _, v = arrays()
        wrong = files.folder / "keys.npy"
        wrong.write_bytes(content)
        line = refuse(files, capsys, "flash", q, str(wrong), v)
        assert line.startswith(f"--keys {wrong}: not a usable .npy file (")

    def test_truncated_file(self, files, capsys):
        q, k, v = arrays()
        path = files.save("keys", k)
        with open(path, "r+b") as file:
            file.truncate(200)
        line = refuse(files, capsys, "flash", q, path, v)
        assert line.startswith(f"--keys {path}: not a usable .npy file (")

    def test_a_folder(self, files, capsys):
        _, k, v = arrays()
        line = refuse(files, capsys, "flash", str(files.folder), k, v)
        assert line.startswith(f"--query {files.folder}: ")

    def test_object_array(self, files, capsys):
        q, k, _ = arrays()
        np.save(files.folder / "values.npy", np.array([{}, []], object), allow_pickle=True)
        line = refuse(files, capsys, "flash", q, k, str(files.folder / "values.npy"))
        assert "not a usable .npy file" in line
        assert "objects" in line

    @pytest.mark.parametrize("dtype", ["complex64", "S3", "U3", "longdouble", "f4,f4"])
    def test_dtype(self, files, capsys, dtype):
        q, _, v = arrays()
        if dtype == "longdouble" and np.dtype(dtype).itemsize == 8:
            pytest.skip("longdouble is float64 here")
        line = refuse(files, capsys, "flash", q, np.zeros((N, DIM), dtype), v)
        assert "keys.npy: dtype " in line
        assert " is not supported (float16, float32, float64 or integer)" in line

    @pytest.mark.parametrize(
        ("query", "keys", "values", "message"),
        [
            (
                (),
                (9, 8),
                (9, 8),
                r"query must have shape (dim,), (m, dim) or (B, m, dim), got ()",
            ),
            ((1, 1, 4, 8), (9, 8), (9, 8), "query must have shape (dim,), (m, dim) or (B, m"),
            (
                (4, 8),
                (8,),
                (9, 8),
                "keys must have shape (n, dim) beside query (4, 8), got (8,)",
            ),
            (
                (2, 4, 8),
                (3, 9, 8),
                (9, 8),
                "keys must have shape (n, dim) or (2, n, dim) beside query (2, 4, 8), got (3",
            ),
            ((4, 8), (9, 8), (9,), "values must have shape (n, dim_v) beside query (4, 8)"),
            ((4, 8), (9, 7), (9, 8), "keys must hold vectors of length 8 as in query, got 7"),
            ((4, 8), (9, 8), (7, 8), "values must hold 9 vectors, one per key, got 7"),
            ((4, 8), (0, 8), (0, 8), "keys must hold at least one vector, got shape (0, 8)"),
        ],
    )
    def test_shapes(self, files, capsys, query, keys, values, message):
        line = refuse(files, capsys, "flash", *map(np.ones, (query, keys, values)))
        assert line.startswith(message)

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (np.ones(M, bool), f"mask must have shape ({N},) or ({M}, {N}), got ({M},)"),
            (
                np.ones((1, M, N), bool),
                f"mask must have shape ({N},) or ({M}, {N}), got (1, {M}",
            ),
            (np.ones(N, int), "mask must be bool or float, got int64"),
        ],
    )
    def test_mask(self, files, capsys, mask, message):
        path = files.save("mask", mask)
        assert refuse(files, capsys, "flash", *arrays(), "--mask", path).startswith(message)

    @pytest.mark.parametrize(
        ("kind", "options", "message"),
        [
            ("multi-head", [], "--kind multi-head needs --heads"),
            ("local-global", ["--local-window=4"], "--kind local-global needs --global-tokens"),
            ("local-global", ["--global-tokens=4"], "--kind local-global needs --local-window"),
            ("dot-product", ["--heads=2"], "--heads does not apply to --kind dot-product"),
            ("dot-product", ["--causal"], "--causal does not apply to --kind dot-product"),
            ("flash", ["--local-window=0"], "--local-window does not apply to --kind flash"),
            ("flash", ["--global-tokens=0"], "--global-tokens does not apply to --kind flash"),
            ("flash", ["--heads=0"], "--heads must be at least 1, got 0"),
            ("flash", ["--heads=5"], "--heads 5 does not divide the width of the keys (24)"),
            (
                "multi-head",
                ["--heads=3"],
                "--heads 3 does not divide the width of the keys (24)",
            ),
            ("multi-head", ["--heads=x"], "argument --heads: invalid int value: 'x'"),
            ("elliptic", [], "argument --kind: invalid choice: 'elliptic'"),
            ("flash", ["--curvature=2"], "--curvature does not apply to --kind flash"),
            ("dual-space", ["--heads=2"], "--kind dual-space needs --euclidean-dim"),
            ("hyperbolic", ["--heads=2"], "--heads does not apply to --kind hyperbolic"),
            ("edge-featured", [], "--kind edge-featured needs --parameters"),
            (
                "edge-featured",
                ["--parameters=/nowhere/p.npz"],
                "--parameters /nowhere/p.npz: No such file or directory",
            ),
            ("moe", ["--top-k=2"], "--kind moe needs --num-experts"),
            ("moe", ["--num-experts=2"], "--kind moe needs --top-k"),
            ("flash", ["--top-k=2"], "--top-k does not apply to --kind flash"),
            (
                "moe",
                ["--num-experts=2", "--top-k=3"],
                "top_k must be at most num_experts, got top_k=3 and num_experts=2",
            ),
            (
                "moe",
                ["--num-experts=2", "--top-k=1", "--expert-types=standard,flash"],
                "expert_types must hold 'standard', 'hyperbolic' or 'linear', got 'flash'",
            ),
            (
                "moe",
                ["--num-experts=2", "--top-k=1", "--parameters=/nowhere/p.npz"],
                "--parameters /nowhere/p.npz: No such file or directory",
            ),
            ("flash", ["--edge-features=e.npy"], "--edge-features does not apply"),
            ("graph-rope", [], "--kind graph-rope needs --max-position"),
            ("graph-rope", ["--max-position=9"], "keys must be at most 9 (max_position)"),
            (
                "graph-rope",
                ["--max-position=99", "--heads=8"],
                "dim must divide into num_heads",
            ),
            ("flash", ["--layout=half"], "--layout does not apply to --kind flash"),
            ("linear", [], "--kind linear needs --num-features"),
            ("linear", ["--num-features=0"], "num_features must be an integer of at least 1"),
            (
                "linear",
                ["--num-features=4", "--seed=-1"],
                "seed must be an integer of at least",
            ),
            ("linear", ["--num-features=4", "--heads=2"], "--heads does not apply to --kind"),
            (
                "linear",
                ["--num-features=4", "--parameters=/nowhere/p.npz"],
                "--parameters /nowhere/p.npz: No such file or directory",
            ),
            ("hyperbolic", ["--curvature=0"], "curvature must not be 0, got 0.0"),
            (
                "dual-space",
                ["--heads=2", "--euclidean-dim=24"],
                "hyperbolic_dim must be an integer of at least 1, got 0",
            ),
            (
                "dual-space",
                ["--heads=2", "--euclidean-dim=8"],
                "values must have the width 24 of the keys",
            ),
            (
                "local-global",
                ["--local-window=4", "--global-tokens=1"],
                f"query must hold one vector or one per key ({N}) for local-global, got {M}",
            ),
        ],
    )
    def test_options(self, files, capsys, kind, options, message):
        assert refuse(files, capsys, kind, *arrays(), *options).startswith(message)

    def test_positions(self, files, capsys):
        for name, array, message in (
            ("key", np.zeros(N), "--key-positions must hold integers, got float64"),
            ("key", np.arange(4), f"key_positions must have shape ({N},), got (4,)"),
            ("query", np.arange(4), f"--query-positions must have shape () or ({M},)"),
            ("query", np.full(M, 99), "query_position must be between 0 and 49"),
        ):
            path = str(files.folder / "mask.npy")
            np.save(path, array)
            options = ["--max-position=50", f"--{name}-positions", path]
            line = refuse(files, capsys, "graph-rope", *arrays(), *options)
            assert line.startswith(message)

    def test_negative_window(self, files, capsys):
        options = ["--local-window=-4", "--global-tokens=1"]
        assert "local_window" in refuse(
            files, capsys, "local-global", *arrays(N, DIM), *options
        )

    def test_output_folder_missing(self, files, capsys):
        files.output = files.folder / "no" / "out.npy"
        line = refuse(files, capsys, "flash", *arrays())
        assert line == f"--output {os.path.realpath(files.output)}: No such file or directory"

    def test_output_is_not_a_file(self, files, capsys):
        files.output = files.folder / "keys.npy" / ".."
        line = refuse(files, capsys, "flash", *arrays())
        assert line.endswith(": is not a regular file")

    def test_no_command(self, capsys):
        with pytest.raises(SystemExit, match="2"):
            main([])
        assert "the following arguments are required: command" in capsys.readouterr().err


class TestProgress:
    def test_lines_appear_when_it_is_long(self, files, monkeypatch, capsys):
        monkeypatch.setattr(_progress, "DELAY", 0.0)
        monkeypatch.setattr(_progress, "INTERVAL", 0.0)
        monkeypatch.setattr(_attend, "_BLOCK_WORK", 1)
        monkeypatch.setattr(_attend, "_MIN_BLOCK", 5)
        files.attend("flash", *arrays())
        assert capsys.readouterr().err == (
            "attend: 5 of 13 queries (38%)\nattend: 10 of 13 queries (77%)\n"
        )

    def test_bar_on_a_terminal(self, files, monkeypatch, capsys):
        pytest.importorskip("tqdm")
        monkeypatch.setattr(_progress, "DELAY", 0.0)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        files.attend("flash", *arrays())
        assert "| 0/13 [" in capsys.readouterr().err


class TestModule:
    def test_info(self):
        done = python("-m", "ruvector", "info")
        assert done.returncode == 0, done.stderr
        assert ["version", ruvector.version()] in [
            line.split() for line in done.stdout.splitlines()
        ]

    def test_info_json(self):
        done = python("-m", "ruvector", "info", "--json")
        assert json.loads(done.stdout)["version"] == ruvector.version()

    def test_version(self):
        done = python("-m", "ruvector", "--version")
        assert done.stdout == f"ruvector {ruvector.version()}\n"

    def test_attend(self, files):
        q, k, v = arrays()
        done = python("-m", "ruvector", *files.arguments("flash", q, k, v, "--heads", "8"))
        assert (done.returncode, done.stderr) == (0, "")
        near(np.load(files.output), formula(q, k, v, heads=8))

    def test_bad_input(self, files):
        q, k, _ = arrays()
        done = python("-m", "ruvector", *files.arguments("flash", q, k, "none.npy"))
        assert done.returncode == 2
        assert done.stderr == (
            "ruvector attend: error: --values none.npy: No such file or directory\n"
        )
        assert files.left() == []

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one child")
    def test_ctrl_c(self, files):
        q, k = np.ones((40_000, 32), np.float32), np.ones((100_000, 32), np.float32)
        command = [sys.executable, "-P", "-m", "ruvector", *files.arguments("flash", q, k, k)]
        with subprocess.Popen(command, env=environ(), stderr=subprocess.PIPE, text=True) as run:
            deadline = time.monotonic() + 60
            while not files.left() and time.monotonic() < deadline:
                time.sleep(0.01)
            (left,) = files.left()
            assert re.fullmatch(rf"\.out\.npy\.{run.pid}\.[0-9a-f]{{8}}\.tmp", left)
            run.send_signal(signal.SIGINT)
            _, error = run.communicate(timeout=60)
        assert run.returncode == 130
        assert error.endswith("ruvector attend: interrupted\n")
        assert files.left() == []

"""The examples do what they say, on every backend."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def memory_recall():
    spec = importlib.util.spec_from_file_location(
        "memory_recall", EXAMPLES / "memory_recall.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("backend")
class TestMemoryRecall:
    def test_recalls_and_agrees_with_numpy(self, memory_recall, capsys):
        assert memory_recall.main(["--rounds", "1"]) == 0
        output = capsys.readouterr().out
        assert "recall@1: 0.33\nrecall@5: 0.57\n" in output
        assert re.search(r"functools\.lru_cache +0\.\d+ +functools\.lru_cache \*\n", output)
        assert "they agree" in output
        times = re.findall(r"(?:at a time|at once) +([\d.]+) +([\d.]+) +([\d.]+)\n", output)
        assert len(times) == 2
        assert re.search(
            r"recall@1 +0\.51 +0\.(?:59|60|61)\n +recall@5 +0\.76 +0\.8[45]\n", output
        )
        assert all(float(number) > 0 for row in times for number in row)

    def test_options(self, memory_recall, capsys):
        arguments = "--top 2 --temperature 0.5 --show json.loads --threads 1 --rounds 1"
        arguments += " --epochs 0"
        assert memory_recall.main(arguments.split()) == 0
        output = capsys.readouterr().out
        assert "recall@1: 0.33\nrecall@2: 0.4" in output
        assert "threads: 1\n" in output
        rows = output.split("recalled\n")[1].split("\n\n")[0].splitlines()
        assert len(rows) == 2
        assert rows[0].startswith("json.loads ")

    def test_plot(self, memory_recall, capsys, tmp_path):
        pytest.importorskip("matplotlib")
        curve = tmp_path / "curve.png"
        arguments = ["--rounds", "1", "--epochs", "2", "--plot", str(curve)]
        assert memory_recall.main(arguments) == 0
        assert curve.read_bytes().startswith(b"\x89PNG")
        assert f"wrote {curve}" in capsys.readouterr().out

    def test_disagreement_fails(self, memory_recall, monkeypatch, capsys):
        formula = memory_recall.numpy_attention

        def wrong(query, keys, values, scale):
            return formula(query, keys, values, 1.01 * scale)

        monkeypatch.setattr(memory_recall, "numpy_attention", wrong)
        assert memory_recall.main(["--rounds", "1", "--epochs", "0"]) == 1
        assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--temperature 0", "--temperature must be positive"),
        ("--epochs -1", "--epochs must be at least 0"),
        ("--top 0", "--top must be at least 1"),
        ("--show no.such", "--show no.such: there is no docstring of that name"),
        ("--data missing.npz", "--data missing.npz: "),
    ],
)
def test_memory_recall_bad_input(memory_recall, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        memory_recall.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_recall_runs_as_a_script(tmp_path):
    script = [sys.executable, EXAMPLES / "memory_recall.py", "--rounds", "1", "--epochs", "1"]
    result = subprocess.run(
        script, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "they agree" in result.stdout

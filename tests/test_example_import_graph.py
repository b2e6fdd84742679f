"""The example over the import graph does what it says, on every backend."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "import_graph.py"
SMALL = ["--edges", "3000", "--rounds", "1"]


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("import_graph", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("backend")
class TestImportGraph:
    def test_shows_imports_and_agrees(self, example, capsys):
        assert example.main(SMALL) == 0
        output = capsys.readouterr().out
        assert "469 modules of Python's standard library, 1842 imports" in output
        assert re.search(r"json\.decoder +0\.\d+ +json \(same package\)\n", output)
        assert re.search(r"zipfile +0\.\d+ +shutil \(mutual\)\n", output)
        assert re.search(r"json\.decoder +0\.\d+ +0\.\d+ +1  json\n", output)
        assert "they agree" in output
        assert re.search(r"compute_graph, 1 thread +[\d.]+ ms, \d+ ns an edge\n", output)

    def test_options(self, example, capsys):
        arguments = [*SMALL, "--top", "1", "--show", "csv", "--threads", "1"]
        assert example.main(arguments) == 0
        output = capsys.readouterr().out
        assert len(re.findall(r"^  csv +", output, re.MULTILINE)) == 3
        assert "2 threads" not in output

    @pytest.mark.parametrize("name", ["numpy_layer", "numpy_rotary"])
    def test_disagreement_fails(self, example, monkeypatch, capsys, name):
        formula = getattr(example, name)

        def wrong(*arguments):
            return formula(*arguments) + 0.01

        monkeypatch.setattr(example, name, wrong)
        assert example.main(SMALL) == 1
        assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--edges 0", "--edges must be at least 1"),
        ("--show no.such", "--show no.such: there is no module of that name"),
        ("--show sys", "--show sys: it imports nothing"),
        ("--data missing.npz", "--data missing.npz: "),
    ],
)
def test_bad_input(example, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        example.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_runs_as_a_script(tmp_path):
    script = [sys.executable, EXAMPLE, *SMALL]
    result = subprocess.run(
        script, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "they agree" in result.stdout

"""The example over the standard library's module tree does what it says, on every backend."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "module_tree.py"


@pytest.fixture
def module_tree():
    spec = importlib.util.spec_from_file_location("module_tree", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(output, label):
    """Return the numbers of the line that begins with a label."""
    (line,) = re.findall(rf"^ *{re.escape(label)} +((?: *[-\d.]+)+)$", output, re.M)
    return [float(number) for number in line.split()]


class TestTree:
    def test_nodes_are_all_prefixes(self, module_tree):
        tree = module_tree.Tree(["b.c.d", "a", "b.c.e"])
        assert tree.names == ["(the library)", "a", "b", "b.c", "b.c.d", "b.c.e"]
        assert tree.depth.tolist() == [0, 1, 1, 2, 3, 3]
        assert tree.parent.tolist() == [0, 0, 0, 2, 3, 3]
        assert tree.members.tolist() == [4, 1, 5]
        assert tree.steps(np.array([4, 1])).tolist() == [[3, 4, 2, 1, 0, 2], [1, 0, 2, 3, 4, 4]]
        kin = [tree.relation(4, i) for i in (0, 1, 2, 3, 5)]
        assert kin == ["ancestor", "stranger", "ancestor", "parent", "sibling"]
        assert tree.relation(3, 4) == "child"
        assert tree.relation(2, 4) == "descendant"

    @pytest.mark.parametrize("curved", [True, False])
    def test_a_child_is_one_step_from_its_parent(self, module_tree, curved):
        from ruvector import hyperbolic

        tree = module_tree.Tree(["b.c.d", "a", "b.c.e", "a.f"])
        x = module_tree.lay_out(tree, 5, 2.0, curved)
        own, parents = x[1:], x[tree.parent[1:]]
        if curved:
            steps = hyperbolic.poincare_distance(own, parents, 1.0)
        else:
            steps = np.linalg.norm(own - parents, axis=1)
        np.testing.assert_allclose(steps, 2.0, rtol=1e-4)


@pytest.mark.usefixtures("backend")
class TestExample:
    def test_a_ball_has_room_for_the_tree(self, module_tree, capsys):
        assert module_tree.main(["--threads", "1"]) == 0
        output = capsys.readouterr().out
        assert "2077 nodes" in output
        ball, flat = numbers(output, "correlation of distance and steps")
        assert ball > 0.95 > 0.6 > flat
        ancestors, _, _, strangers, away = numbers(output, "curved")
        assert ancestors > 0.5
        assert strangers < 0.1
        assert numbers(output, "flat")[-1] > 2 * away
        assert re.search(r"^ +0\.\d+ +parent +textwrap ", output, re.M)
        text, place, both = (
            numbers(output, f"by {kind}") for kind in ("text", "place", "both")
        )
        assert text == [0.33, 0.57]
        assert both[0] > 0.45 > max(text[0], place[0])
        assert both[1] > 0.8 > max(text[1], place[1])
        assert "they agree" in output

    def test_options(self, module_tree, capsys):
        options = "--dim 32 --show json.loads logging --fusion-weight 0.2 --threads 1"
        assert module_tree.main([*options.split(), "--perplexity", "3", "--step", "2"]) == 0
        output = capsys.readouterr().out
        assert "json.loads attends" in output
        assert "logging attends" in output
        assert "threads: 1\n" in output
        assert numbers(output, "correlation of distance and steps")[1] > 0.7

    def test_disagreement_fails(self, module_tree, monkeypatch, capsys):
        weigh = module_tree.by_distance
        monkeypatch.setattr(
            module_tree, "by_distance", lambda x, temperature: weigh(1.02 * x, temperature)
        )
        assert module_tree.main(["--show", "queue", "--threads", "1"]) == 1
        assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--step 0", "--step must be positive"),
        ("--perplexity -1", "--perplexity must be positive"),
        ("--dim 1", "--dim must be at least 2"),
        ("--threads 0", "--threads must be at least 1"),
        ("--fusion-weight 2", "--fusion-weight must be from 0 to 1"),
        ("--show no.such", "--show no.such: there is no such package"),
        ("--data missing.npz", "--data missing.npz: "),
    ],
)
def test_bad_input(module_tree, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        module_tree.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_runs_as_a_script(tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert "they agree" in result.stdout

"""The example over shards in worker processes does what it says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from isolated import environ

EXAMPLE = Path(__file__).parents[1] / "examples" / "cluster_recall.py"


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, EXAMPLE, "--rounds", "1", *arguments],
        cwd=cwd, env=environ(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("cluster_recall", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recalls_what_one_process_recalls(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1714 docstrings, 384 wide, in 4 processes\n" in done.stdout
    assert "recall@1: 0.33\nrecall@5: 0.57\n" in done.stdout
    assert done.stdout.endswith("they agree\n")
    sent, received, stays = (
        int(re.search(rf"{word} +([\d,]+)", done.stdout)[1].replace(",", ""))
        for word in ("sent", "received", "stays")
    )
    assert max(sent, received) < 3000
    assert stays == 1714 * 384 * 4 // 4


def test_disagreement_fails(example, monkeypatch, capsys):
    sharded = example.sharded_attention

    def wrong(query, shards, **keywords):
        return sharded(query, shards[1:], **keywords)

    monkeypatch.setattr(example, "sharded_attention", wrong)
    monkeypatch.setattr(example, "started", in_this_process)
    assert example.main(["--rounds", "1", "--workers", "3", "--questions", "20"]) == 1
    assert "THEY DISAGREE" in capsys.readouterr().out


def in_this_process(workers, use_dask):
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(workers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workers 0", "--workers must be at least 1"),
        ("--temperature 0", "--temperature must be positive"),
        ("--data missing.npz", "--data missing.npz: "),
    ],
)
def test_bad_input(example, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        example.main(arguments.split())
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.peers
def test_on_dask(tmp_path):
    pytest.importorskip("distributed")
    done = run("--dask", "--questions", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in 4 Dask workers\n" in done.stdout

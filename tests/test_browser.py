"""The pure-Python wheel in WebAssembly: in Node, and the example's page in Chromium."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import ruvector
from ruvector import _kernels

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(__file__).parent / "browser"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="no checkout"),
    pytest.mark.skipif(len(_kernels.available()) == 1, reason="once is enough: with kernels"),
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is missing"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="npm is missing"),
]


@pytest.fixture
def site():
    """Return the folder that the example is served from."""
    spec = importlib.util.spec_from_file_location(
        "browser_site", ROOT / "tools" / "browser_site.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = ROOT / "build" / "browser"
    try:
        module.main([str(folder)])
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"what the page needs cannot be had here: {error}")
    return folder


@pytest.fixture
def address(site):
    """Return the address of a server of the folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()
        thread.join()


def _node(script, *arguments):
    command = ["node", str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_selftest_in_node(site):
    (wheel,) = json.loads((site / "wheels.json").read_text())
    output = _node("selftest.mjs", site, wheel)
    assert "backend python" in output
    assert " 0 failed" in output


def _expected(name, temperature):
    with np.load(ROOT / "examples" / "data" / "stdlib_memory.npz") as data:
        names, row = data["names"].tolist(), data["names"].tolist().index(name)
        query = data["queries"][row].astype(np.float32)
        memory = data["documents"].astype(np.float32)
    weights = ruvector.attention_weights(memory @ query / temperature)
    return [
        {"name": names[i], "weight": pytest.approx(weights[i], abs=6e-4), "right": i == row}
        for i in np.argsort(-weights)[:5]
    ]


def check_page(site, address, chromium, picture):
    shown = json.loads(_node("page.mjs", site, address, chromium, picture))
    assert shown["errors"] == []
    questions = {
        "sharp": ("functools.lru_cache", 0.05),
        "other": ("textwrap.dedent", 0.05),
        "warm": ("textwrap.dedent", 0.2),
    }
    for state, (name, temperature) in questions.items():
        page = shown[state]
        assert page["state"] == "ready", page["status"]
        assert page["recalled"] == _expected(name, temperature)
    # A warm attention spreads over the whole memory, a sharp one draws a few bars.
    assert shown["warm"]["drawn"] > 2 * shown["sharp"]["drawn"] > 0
    assert picture.stat().st_size > 10_000


def test_node_and_chromium(site, address, tmp_path):
    """One test, because both need the folder and pytest-xdist would share it out."""
    check_selftest_in_node(site)
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is missing")
    check_page(site, address, chromium, tmp_path / "page.png")

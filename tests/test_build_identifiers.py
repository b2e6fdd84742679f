"""Which wheels cibuildwheel would build, platform by platform; it builds none of them here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYTHONS = ("cp311", "cp314t", "cp315t")
PLATFORMS = {
    "linux": (
        "manylinux_x86_64",
        "manylinux_aarch64",
        "musllinux_x86_64",
        "musllinux_aarch64",
    ),
    "macos": ("macosx_x86_64", "macosx_arm64"),
    "windows": ("win_amd64", "win_arm64"),
}

pytestmark = [
    pytest.mark.skipif(find_spec("cibuildwheel") is None, reason="cibuildwheel is missing"),
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no checkout"),
]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_identifiers(platform):
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers"]
    environment = {name: x for name, x in os.environ.items() if not name.startswith("CIBW_")}
    done = subprocess.run(
        [*command, "--platform", platform, str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = {f"{python}-{target}" for python in PYTHONS for target in PLATFORMS[platform]}
    assert sorted(done.stdout.split()) == sorted(expected)

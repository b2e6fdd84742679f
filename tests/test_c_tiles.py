"""The C tiles alone: here, on AArch64 under an emulator, on older CPUs."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TILES = HERE.parent / "ruvector" / "_kernels" / "simd"
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]

pytestmark = pytest.mark.skipif(not TILES.is_dir(), reason="the C sources are not here")


def _tool(*names):
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"none of {', '.join(names)} is installed")


def _build(folder, compiler, *flags):
    program = folder / "test_tiles"
    sources = [HERE / "c" / "test_tiles.c", *sorted(TILES.glob("*.c"))]
    command = [compiler, *FLAGS, *flags, f"-I{TILES}", *sources, "-lm", "-o", program]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    return str(program)


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("native"), _tool("cc", "gcc", "clang"), "-O2")


def test_every_instruction_set_here(program):
    assert all(": ok" in line for line in _run(program))


def test_neon_under_an_emulator(tmp_path):
    compiler, emulator = _tool("aarch64-linux-gnu-gcc"), _tool("qemu-aarch64")
    program = _build(tmp_path, compiler, "-O2", "-static")
    lines = _run(emulator, program, "quick")
    assert [line.split(":")[0] for line in lines] == ["scalar", "neon"]
    assert all(": ok" in line for line in lines)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 program")
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Nehalem", ["scalar"]),
        ("SandyBridge", ["scalar"]),
        ("Haswell", ["scalar", "avx2"]),
    ],
)
def test_detection_on_older_processors(program, model, expected):
    """What the emulated CPU lacks is not offered, and the offer is made without it."""
    assert _run(_tool("qemu-x86_64"), "-cpu", model, program, "list") == expected

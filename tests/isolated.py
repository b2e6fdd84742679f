"""Run Python code in a process of its own, with the package that is being tested."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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


def selecting(backend: tuple[str, str | None]) -> dict[str, str]:
    """Return the variables under which a process uses a backend and an instruction set."""
    name, isa = backend
    return {"RUVECTOR_BACKEND": name} | ({} if isa is None else {"RUVECTOR_ISA": isa})


def interrupted(code: str, **environment: str) -> None:
    """Run code that prints a line before a long call, and Ctrl-C must end that call."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env=environ(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    assert printed == ""
    assert "KeyboardInterrupt" in errors

"""Import time over NumPy's own, and installed size, against torch."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import zlib
from pathlib import Path

import ruvector

from ..core import OURS, Context, Measurement

__all__ = ["rows"]

_IMPORT = """\
import time, numpy
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""


def _folders() -> dict[str, Path]:
    folders = {OURS: Path(ruvector.__file__).parent}
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        folders["torch"] = Path(spec.origin).parent
    return folders


def _import_seconds(module: str, folder: Path) -> float:
    env = {**os.environ, "PYTHONPATH": str(folder.parent)}
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT.format(module=module)],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    return float(done.stdout)


def _import_time(ctx: Context) -> dict[str, float]:
    folders = _folders()
    samples: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(3 if ctx.quick else 11):
        for name, folder in folders.items():
            samples[name].append(_import_seconds(name, folder))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def _files(folder: Path) -> list[Path]:
    """What a wheel would hold: no caches and no generated C."""
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not _generated(path)
    ]


def _generated(path: Path) -> bool:
    return path.suffix == ".c" and path.with_suffix(".pyx").exists()


def _installed_size(ctx: Context) -> dict[str, float]:
    return {
        name: sum(path.stat().st_size for path in _files(folder)) / 1e6
        for name, folder in _folders().items()
    }


def _wheel_size(ctx: Context) -> dict[str, float]:
    files = _files(_folders()[OURS])
    return {OURS: sum(len(zlib.compress(path.read_bytes())) for path in files) / 1e6}


def rows() -> list[Measurement]:
    """Import time, installed size, and the size compressed as in a wheel."""
    return [
        Measurement("import, over NumPy's own", "s", _import_time, must=0.15, aim=0.06),
        Measurement("installed size", "MB", _installed_size),
        Measurement("size compressed", "MB", _wheel_size, must=3.0),
    ]

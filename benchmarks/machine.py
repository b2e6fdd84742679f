"""The machine: CPU, instruction set, BLAS, and its measured peaks, without a compiler.

The FMA peak is the best float32 matrix product of NumPy and torch over cache-resident
sizes, about 95 % of what a hand-written loop reaches, so shares of it err on the high side
by as much; the memory bandwidth is the best of several reductions over 512 MiB. Both are
measured in a child process without ``OPENBLAS_CORETYPE``, which would make OpenBLAS run
another CPU's kernels.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["OPENBLAS_VARIABLES", "Machine", "available_memory", "cpu_count", "detect"]

OPENBLAS_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_LIBRARY = ("version", "backend", "isa", "openmp", "native_error")
_SIZES = (384, 512, 768)
_BUFFER = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Machine:
    """What the table's heading says; ``fma`` in flop/s and ``bandwidth`` in byte/s."""

    cpu: str
    cpus: int
    threads: int
    flags: frozenset[str]
    fma: float
    bandwidth: float
    blas: str
    library: dict[str, Any]
    load: float

    @property
    def lines(self) -> list[str]:
        """The heading."""
        notes = [
            f"{name} is set: NumPy's BLAS may run another CPU's kernels; "
            f"unset {name} for a fair NumPy"
            for name in OPENBLAS_VARIABLES
            if name in os.environ
        ]
        if self.load > 0.5:
            notes.append(f"load average {self.load:.1f} before the run: others disturb it")
        return [
            f"CPU: {self.cpu}, {self.cpus} usable; threads: {self.threads}",
            f"measured: sgemm peak {self.fma / 1e9:.0f} GF/s, "
            f"memory read {self.bandwidth / 1e9:.1f} GB/s",
            f"NumPy BLAS: {self.blas}",
            "ruvector: " + ", ".join(f"{key} {value}" for key, value in self.library.items()),
            *(f"NOTE: {note}" for note in notes),
        ]


def cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> float:
    """Bytes of memory that are free for use, infinity where the system does not say."""
    for line in _proc_lines("meminfo"):
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("inf")


def detect(threads: int) -> Machine:
    """Measure the peaks for so many threads and describe the machine."""
    import ruvector

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cpu, flags = platform.processor() or platform.machine(), frozenset[str]()
    for line in _proc_lines("cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            cpu = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    fma, bandwidth = _measure_peaks(threads)
    info = ruvector.info()
    library = {key: info[key] for key in _LIBRARY if info.get(key) is not None}
    return Machine(cpu, cpu_count(), threads, flags, fma, bandwidth, _blas(), library, load)


def _proc_lines(name: str) -> list[str]:
    try:
        return (Path("/proc") / name).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _blas() -> str:
    import numpy  # noqa: F401  (loads the library that is looked for)
    from threadpoolctl import threadpool_info

    found = [
        f"{entry['internal_api']} {entry.get('version')} ({entry.get('architecture')} kernels)"
        for entry in threadpool_info()
        if entry["user_api"] == "blas"
    ]
    return ", ".join(dict.fromkeys(found)) or "none that threadpoolctl knows"


def _measure_peaks(threads: int) -> tuple[float, float]:
    env = {key: value for key, value in os.environ.items() if key not in OPENBLAS_VARIABLES}
    env["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.machine", str(threads)],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    fma, bandwidth = json.loads(done.stdout)
    return fma, bandwidth


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _probe(threads: int) -> tuple[float, float]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    torch: Any
    try:
        import torch
    except ImportError:
        torch = None
    else:
        torch.set_num_threads(threads)
    fma, times = 0.0, []
    with threadpool_limits(threads):
        for size in _SIZES:
            a, out = np.ones((size, size), np.float32), np.empty((size, size), np.float32)
            calls: list[Callable[[], object]] = [functools.partial(np.matmul, a, a, out=out)]
            if torch is not None:
                calls.append(functools.partial(torch.matmul, *[torch.from_numpy(a)] * 2))
            fma = max(fma, *(2.0 * size**3 / _best(call, 0.1) for call in calls))
        data = np.ones(_BUFFER // 4, np.float32)
        times = [_best(call, 0.3) for call in (data.max, lambda: np.dot(data, data))]
        if torch is not None:
            times.append(_best(torch.from_numpy(data).sum, 0.3))
    return fma, _BUFFER / min(times)


if __name__ == "__main__":
    print(json.dumps(_probe(int(sys.argv[1]))))

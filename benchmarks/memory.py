"""Peak memory of one attention call beyond its inputs and output, in bytes.

Run as ``python -m benchmarks.memory QUERIES KEYS THREADS`` in a fresh process; Linux only,
because the high-water mark is reset between the set-up and the call.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import ruvector

_HEADS, _DIM = 6, 64


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def extra_memory(queries: int, keys: int) -> int:
    """Return the growth of the resident set during one call."""
    rng = np.random.default_rng(2024)
    query = rng.standard_normal((1, _HEADS, queries, _DIM), dtype=np.float32)
    key, value = rng.standard_normal((2, 1, _HEADS, keys, _DIM), dtype=np.float32)
    out = np.zeros_like(query)
    attend = ruvector.scaled_dot_product_attention
    # loads what is loaded lazily and starts the threads
    attend(query, key[:, :, :512], value[:, :, :512], out=out)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    attend(query, key, value, out=out)
    return max(0, _status("VmHWM") - before)


def main() -> None:
    """Print the growth for the arguments of the command line."""
    queries, keys, threads = map(int, sys.argv[1:])
    with ruvector.num_threads(threads):
        print(extra_memory(queries, keys))


if __name__ == "__main__":
    main()

"""What long calls may not do: take memory with the lengths, or keep Ctrl-C waiting."""

from __future__ import annotations

import os
import sys

import pytest
from isolated import interrupted, output, selecting

# Measured in a process of its own, so that no earlier peak hides this one; getrusage would
# count the peak of the process that started it.
MEASURE = """
import re, sys
import numpy as np
from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024

dtype, num_queries, num_keys = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
q, k, v = (np.ones((1, 1, n, 64), dtype) for n in (num_queries, num_keys, num_keys))
out, lse = np.ones_like(q), np.ones((1, 1, num_queries), np.float32)
options = {}
exec(sys.argv[4])
spec = AttentionSpec(scale=0.125, **options)
before = peak()
_kernels.softmax.attend(q, k, v, out, lse, spec, 2)
print(peak() - before)
"""

# Anything of size Lq x Lk would take 33 MB even as booleans.
SOME, MANY = 512, 65_536
LIMIT = 32e6
CALLS = {
    "plain": ("float32", SOME, ""),
    "float16": ("float16", SOME, ""),
    "bfloat16": ("uint16", SOME, ""),
    "causal": ("float32", SOME, "options = {'causal': True, 'bottom_right': True}"),
    "window": ("float32", MANY, "options = {'left': 256, 'right': 256, 'num_sinks': 4}"),
    "mask": (
        "float32",
        SOME,
        "options = {'mask': np.broadcast_to(np.arange(65536) % 3 > 0, (1, 1, 512, 65536))}",
    ),
    "bias": (
        "float32",
        SOME,
        "options = {'bias': np.broadcast_to(np.float32(1), (1, 1, 512, 65536))}",
    ),
    "alibi": ("float32", SOME, "options = {'slopes': np.ones(1, np.float32)}"),
    "one query": ("float32", 1, ""),
    "reversed keys": ("float32", SOME, "k, v = k[:, :, ::-1], v[:, :, ::-1]"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("call", CALLS)
def test_memory_does_not_grow_with_the_lengths(backend, call):
    dtype, num_queries, prepare = CALLS[call]
    arguments = dtype, str(num_queries), str(MANY), prepare
    grown = int(output(MEASURE, *arguments, **selecting(backend)))
    assert grown < LIMIT


INTERRUPTED = """
import numpy as np
from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

x = np.ones((1, 1, 400_000, 64), np.float32)
out = np.empty_like(x)
print("started", flush=True)
_kernels.softmax.attend(x, x, x, out, None, AttentionSpec(scale=0.125), 1)
print("finished", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_ends_a_long_call(backend):
    interrupted(INTERRUPTED, **selecting(backend))

"""What long gradients may not do: take memory with the lengths, or keep Ctrl-C waiting."""

from __future__ import annotations

import os
import sys

import pytest
from isolated import interrupted, output, selecting

# In a process of its own, so that no earlier peak hides this one.
MEASURE = """
import re, sys
import numpy as np
from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1]) * 1024

dtype, num_queries, num_keys = sys.argv[1], 1024, 32768
q, k, v = (np.ones((1, 1, n, 64), dtype) for n in (num_queries, num_keys, num_keys))
lse = np.full((1, 1, num_queries), 30, np.float32)
targets = [np.ones_like(x) for x in (q, k, v)] + [None, None, None]
options = {}
exec(sys.argv[2])
spec = AttentionSpec(scale=0.125, **options)
before = peak()
_kernels.softmax_backward.attend_backward(q, k, v, q, lse, q, lse, *targets, spec, 2)
print(peak() - before)
"""

# Anything of size Lq x Lk would take 33 MB even as booleans. The NumPy twin sums gradients of
# float16 in float32: 17 MB.
LIMIT = 32e6
CALLS = {
    "plain": ("float32", ""),
    "float16": ("float16", ""),
    "causal, softcap": (
        "float32",
        "options = {'causal': True, 'bottom_right': True, 'softcap': 50.0}",
    ),
    "bias of the keys": (
        "float32",
        "options = {'bias': np.broadcast_to(np.zeros(32768, np.float32), (1, 1, 1024, 32768))}"
        "; targets[3] = np.zeros((1, 1, 1, 32768), np.float32)",
    ),
    "slopes": (
        "float32",
        "options = {'slopes': np.ones(1, np.float32)}; targets[4] = np.ones(1, np.float32)",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("call", CALLS)
def test_memory_does_not_grow_with_the_lengths(backend, call):
    assert int(output(MEASURE, *CALLS[call], **selecting(backend))) < LIMIT


INTERRUPTED = """
import numpy as np
from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

x = np.ones((1, 1, 200_000, 64), np.float32)
grads = [np.empty_like(x) for _ in range(3)]
lse = np.ones((1, 1, 200_000), np.float32)
print("started", flush=True)
_kernels.softmax_backward.attend_backward(
    x, x, x, x, lse, x, None, *grads, None, None, None, AttentionSpec(scale=0.125), 1
)
print("finished", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_control_c_ends_a_long_call(backend):
    interrupted(INTERRUPTED, **selecting(backend))

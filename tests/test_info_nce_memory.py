"""A batch that is told from itself takes memory of its own size, not of its square."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from isolated import output, selecting

from ruvector import _kernels

# An instruction set changes no memory, but the slow ones the time.
PAIRS = sorted({_kernels.available()[0], _kernels.available()[-1]}, reverse=True)

CODE = """
import sys
from pathlib import Path
import numpy as np
from ruvector.training import InfoNCELoss

rows, width, named = 16384, 64, sys.argv[1] == "ids"
anchors, positives = np.random.default_rng(0).standard_normal((2, rows, width), np.float32)
ids = np.arange(rows) // 2 if named else None
loss = InfoNCELoss()
loss.compute_with_gradients(anchors[:99], positives[:99], ids=ids[:99] if named else None)

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
loss.compute_with_gradients(anchors, positives, ids=ids)
print((status("VmHWM:") - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/proc/self/clear_refs").exists(),
    reason="the peak of a running process can be read on Linux only",
)
@pytest.mark.parametrize("ids", ["plain", "ids"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[1] or pair[0])
def test_no_square_of_the_batch(pair, ids):
    # The scores would have 1024 MiB and a mask 256; what has a row for every anchor has 4, and
    # there are four of these: two gradients and two arrays of unit vectors. A mask comes in
    # blocks of 16.
    assert int(output(CODE, ids, **selecting(pair))) < (60 if ids == "ids" else 36)

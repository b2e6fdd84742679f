"""The utilities against pairs recorded from the upstream packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ruvector import utils

RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())
OPERATIONS = [
    "softmax",
    "attention_weights",
    "normalize",
    "l2_norm",
    "cosine_similarity",
    "batch_normalize",
    "pairwise_distances",
    "scaled_dot_attention",
]
CASES = [case for case in RECORDED["cases"] if case["op"] in OPERATIONS]


def test_every_operation_was_recorded():
    assert {case["op"] for case in CASES} == set(OPERATIONS)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["op"])
def test_same_as_upstream(case):
    result = getattr(utils, case["op"])(**case["inputs"], **case["params"])
    assert result.dtype == np.float32
    # Upstream returns matrices flat.
    np.testing.assert_allclose(np.ravel(result), np.ravel(case["output"]), rtol=2e-5, atol=4e-6)

"""Dense attention against the recorded results of the npm packages (data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ruvector import (
    DotProductAttention,
    FlashAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
)

pytestmark = pytest.mark.usefixtures("backend")


def dot_product(query, keys, values, mask=None, *, dim):
    return DotProductAttention(dim).compute(query, keys, values, mask=mask)


def multi_head(query, keys, values, **params):
    return MultiHeadAttention(**params).compute(query, keys, values)


def flash(query, keys, values, **params):
    return FlashAttention(**params).compute(query, keys, values)


def local_global(query, keys, values, *, position, **params):
    # A position that is stated would make its query a global token below global_tokens.
    assert position == len(keys) // 2
    return LocalGlobalAttention(**params).compute(query, keys, values)


OPERATIONS = {
    "dot_product": dot_product,
    "dot_product_masked": dot_product,
    "multi_head": multi_head,
    "flash": flash,
    "local_global": local_global,
}
RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())
CASES = [case for case in RECORDED["cases"] if case["op"] in OPERATIONS]


def test_every_operation_was_recorded():
    assert {case["op"] for case in CASES} == set(OPERATIONS)
    assert len(CASES) == 20


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["op"])
@pytest.mark.parametrize("as_arrays", [False, True], ids=["lists", "arrays"])
def test_equals_upstream(case, as_arrays):
    inputs = dict(case["inputs"])
    if as_arrays:
        for name in ("query", "keys", "values"):
            inputs[name] = np.array(inputs[name], np.float32)
    got = OPERATIONS[case["op"]](**inputs, **case["params"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, case["output"], rtol=2e-5, atol=4e-6)

"""Losses and miners against the recorded results of the npm packages (data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ruvector.training import (
    HardNegativeMiner,
    InBatchMiner,
    InfoNCELoss,
    LocalContrastiveLoss,
    SpectralRegularization,
)

pytestmark = pytest.mark.usefixtures("backend")


def info_nce(anchor, positive, negatives, *, temperature):
    result = InfoNCELoss(temperature).compute_with_gradients(anchor, positive, negatives)
    return np.append(result.gradients, result.loss)


def local_contrastive(anchor, positive, negatives, *, margin):
    return LocalContrastiveLoss(margin).compute(anchor, positive, negatives)


def spectral_regularization(embeddings, *, weight):
    return SpectralRegularization(weight).compute(embeddings)


def mine_hard(anchor, positive, candidates, *, num_negatives):
    return HardNegativeMiner("hard").mine(anchor, positive, candidates, num_negatives)


def mine_semi_hard(anchor, positive, candidates, *, margin, num_negatives):
    miner = HardNegativeMiner.with_margin("semi_hard", margin)
    return miner.mine(anchor, positive, candidates, num_negatives)


def in_batch_negatives(*, exclude_positive, **inputs):
    return InBatchMiner(exclude_positive).get_negatives(**inputs)


OPERATIONS = {
    function.__name__: function
    for function in (
        info_nce,
        local_contrastive,
        spectral_regularization,
        mine_hard,
        mine_semi_hard,
        in_batch_negatives,
    )
}
RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())
CASES = [case for case in RECORDED["cases"] if case["op"] in OPERATIONS]


def test_every_operation_was_recorded():
    assert {case["op"] for case in CASES} == set(OPERATIONS)
    assert len(CASES) == 24


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["op"])
def test_equals_upstream(case):
    got = OPERATIONS[case["op"]](**case["inputs"], **case["params"])
    expected = case["output"]
    if isinstance(expected, dict):
        expected = [*expected["gradients"], expected["loss"]]
    if np.ndim(got) and got.dtype.kind == "i":
        assert got.tolist() == expected
    else:
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=4e-6)

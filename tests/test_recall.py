"""Recall at k against ranks written out."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import unit

from ruvector.errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
)
from ruvector.training import (
    recall_at_k,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestRecall:
    def test_against_ranks(self):
        rng = np.random.default_rng(0)
        anchors = rng.standard_normal((300, 9))
        positives = np.concatenate(
            (anchors + rng.standard_normal((300, 9)), rng.standard_normal((50, 9)))
        )
        scores = unit(anchors) @ unit(positives).T
        rank = (scores > scores[np.arange(300), np.arange(300)][:, None]).sum(axis=1)
        expected = {k: (rank < k).mean() for k in (1, 3, 400)}
        assert recall_at_k(anchors, positives, (1, 3, 400)) == pytest.approx(expected)
        assert recall_at_k(anchors, positives, 3)[3] == expected[3]

    def test_blocks(self, monkeypatch):
        from ruvector.training import recall

        arrays = np.random.default_rng(0).standard_normal((2, 70, 5)).astype(np.float32)
        whole = recall_at_k(*arrays)
        monkeypatch.setattr(recall, "_BLOCK", 16)
        assert recall_at_k(*arrays) == whole

    def test_a_zero_vector_finds_nothing_in_particular(self):
        assert recall_at_k(np.zeros((2, 3)), np.eye(2, 3), 1) == {1: 0.5}

    def test_bad_input(self):
        with pytest.raises(DimensionMismatchError, match="positives must hold 3 vectors"):
            recall_at_k(np.ones((3, 2)), np.ones((2, 2)))
        with pytest.raises(DimensionMismatchError, match=r"anchors must have shape \(n, d\)"):
            recall_at_k(np.ones(3), np.ones((3, 2)))
        with pytest.raises(EmptyInputError, match="anchors must not be empty"):
            recall_at_k(np.ones((0, 2)), np.ones((0, 2)))
        with pytest.raises(InvalidConfigError, match="k must be an integer of at least 1"):
            recall_at_k(np.ones((3, 2)), np.ones((3, 2)), 0)

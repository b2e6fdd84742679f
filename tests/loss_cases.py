"""Batches in every form that the losses take."""

from __future__ import annotations

import numpy as np
import pytest
import reference_losses as reference

FORMS = ("in_batch", "shared", "own")
DTYPES = {np.float32: 3e-6, np.float64: 1e-12}
# (anchors, negatives, dim): around the vector widths and on both sides of the paths for few.
SHAPES = [(1, 1, 1), (2, 7, 3), (16, 15, 8), (17, 33, 31), (33, 97, 40)]


class Batch:
    def __init__(self, rng, form, shape, dtype=np.float64, *, ids=False):
        rows, count, dim = shape
        lead = {"in_batch": None, "shared": (count,), "own": (rows, count)}[form]
        self.anchors, self.positives = rng.standard_normal((2, rows, dim)).astype(dtype)
        self.negatives = (
            None if lead is None else rng.standard_normal((*lead, dim)).astype(dtype)
        )
        self.options = {}
        if ids:
            self.options["ids"] = rng.integers(0, max(2, rows // 2), rows)
            if lead is not None:
                self.options["negative_ids"] = rng.integers(0, max(2, rows // 2), lead)

    @property
    def arrays(self):
        return self.anchors, self.positives, self.negatives

    @property
    def sets(self):
        return reference.sets_of(self.anchors, self.negatives, **self.options)


def assert_close(got, expected, tolerance):
    """Compare within a part of the largest entry."""
    if expected is None:
        assert got is None
        return
    size = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * size)


def check(result, expected, batch, dtype):
    loss, *gradients = expected
    np.testing.assert_allclose(result.loss, loss, rtol=DTYPES[dtype], atol=DTYPES[dtype])
    names = ("anchor", "positive", "negatives", "temperature")
    for name, gradient in zip(names, gradients, strict=False):
        got = getattr(result, name)
        assert_close(got, gradient, 10 * DTYPES[dtype])
        if isinstance(got, np.ndarray):
            assert got.dtype == dtype
    for got, given in zip((result.anchor, result.positive), batch.arrays, strict=False):
        assert got.shape == given.shape


every_form = pytest.mark.parametrize("form", FORMS)

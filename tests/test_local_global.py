"""LocalGlobalAttention: where queries stand, and so which keys they see."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ruvector import DimensionMismatchError, InvalidConfigError, LocalGlobalAttention

pytestmark = pytest.mark.usefixtures("backend")


def zeros(*shape):
    return np.zeros(shape, np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def seen(attention, query, n, **keywords):
    """Tell which keys each query attends to."""
    keys = np.zeros((n, 4), np.float32)
    _, weights = attention.compute(query, keys, keys, return_weights=True, **keywords)
    return [np.flatnonzero(row).tolist() for row in np.atleast_2d(weights)]


def test_a_single_query_stands_in_the_middle_and_is_not_global():
    attention = LocalGlobalAttention(4, local_window=2, global_tokens=1)
    assert seen(attention, zeros(4), 6) == [[0, 2, 3, 4]]
    assert seen(attention, zeros(1, 4), 6) == [[0, 2, 3, 4]]
    # It stands at 1, below two global tokens, and sees no more for that.
    attention = LocalGlobalAttention(4, local_window=0, global_tokens=2)
    assert seen(attention, zeros(4), 3) == [[0, 1]]


def test_as_many_queries_as_keys():
    attention = LocalGlobalAttention(4, local_window=2, global_tokens=1)
    wanted = [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3, 4], [0, 3, 4]]
    assert seen(attention, zeros(5, 4), 5) == wanted


def test_explicit_positions():
    attention = LocalGlobalAttention(4, local_window=3, global_tokens=2)
    positions = [5, 0, 3, 9]
    wanted = [[0, 1, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4], [0, 1]]
    for given in (positions, np.array(positions, np.int32), tuple(positions)):
        assert seen(attention, zeros(4, 4), 6, positions=given) == wanted
    for one, row in zip(positions, wanted, strict=True):
        for given in (one, [one], np.int64(one)):
            assert seen(attention, zeros(4), 6, positions=given) == [row]


def test_positions_are_shared_by_a_batch():
    attention = LocalGlobalAttention(4, local_window=2, global_tokens=0)
    query, keys = normal(3, 2, 4), normal(3, 7, 4, seed=1)
    got = attention.compute(query, keys, keys, positions=[6, 1])
    for i in range(3):
        one = attention.compute(query[i], keys[i], keys[i], positions=[6, 1])
        np.testing.assert_allclose(got[i], one, rtol=1e-6, atol=1e-6)


def test_a_mask_does_not_shift_positions():
    attention = LocalGlobalAttention(4, local_window=2, global_tokens=0)
    mask = np.array([False, False, True, True, True, False])
    assert seen(attention, zeros(4), 6, mask=mask) == [[2, 3, 4]]


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        (
            None,
            InvalidConfigError,
            "positions must be given for 3 queries over 5 keys, got None",
        ),
        (
            [1, 2],
            DimensionMismatchError,
            "positions must have shape (3,), one per query, got (2,)",
        ),
        (
            2,
            DimensionMismatchError,
            "positions must have shape (3,), one per query, got ()",
        ),
        ([1, -2, 3], InvalidConfigError, "positions must not be negative, got -2"),
        ([1.0, 2.0, 3.0], TypeError, "positions must hold integers, got dtype float32"),
    ],
)
def test_refused(positions, error, message):
    attention = LocalGlobalAttention(4, 2, 1)
    with pytest.raises(error, match="^" + re.escape(message)):
        attention.compute(zeros(3, 4), zeros(5, 4), zeros(5, 4), positions=positions)

"""The routing kernels: choice, capacity, weights and losses, by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import reference_moe
from hypothesis import given
from hypothesis import strategies as st

from ruvector._kernels import routing

A, B, C, D = range(4)


def matrices(least=0):
    """Draw logits that often tie."""
    rows, experts = st.integers(least, 40), st.integers(1, 6)
    values = st.integers(-3, 3)
    return st.tuples(rows, experts).flatmap(
        lambda shape: st.lists(
            st.lists(values, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        ).map(lambda drawn: np.array(drawn, np.float32).reshape(shape))
    )


def orders(*rows):
    """Complete each list of experts to the ranking of four."""
    return np.array([[*row, *(e for e in range(4) if e not in row)] for row in rows])


class TestRank:
    def test_best_first(self):
        order = routing.rank(np.array([[0.1, 3.0, -1.0, 0.5]], np.float32))
        assert order.tolist() == [[B, D, A, C]]

    def test_ties_go_to_the_lowest_index(self):
        logits = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
        assert routing.rank(logits).tolist() == [[0, 1, 2], [1, 2, 0], [0, 2, 1]]

    def test_what_float32_cannot_tell_apart_is_a_tie(self):
        assert routing.rank(np.array([[1.0, 1.0 + 1e-12]])).tolist() == [[0, 1]]
        assert routing.rank(np.array([[1.0, 1.0 + 1e-6]])).tolist() == [[1, 0]]

    def test_nan_and_infinity(self):
        logits = np.array([[np.nan] * 3, [0.0, np.inf, -np.inf], [1e300, 1e299, 0.0]])
        assert routing.rank(logits).tolist() == [[0, 1, 2], [1, 0, 2], [0, 1, 2]]

    @given(matrices())
    def test_against_sorting(self, logits):
        expected = [reference_moe.ranking(row) for row in logits.tolist()]
        assert routing.rank(logits).tolist() == expected


class TestCapacity:
    @pytest.mark.parametrize(
        ("factor", "rows", "count", "experts", "expected"),
        [
            (1.25, 8, 2, 4, 5),
            (1.25, 10, 1, 4, 4),
            (1.0, 9, 2, 4, 5),
            (1.0, 8, 1, 4, 2),
            (0.01, 8, 1, 4, 1),
            (100.0, 8, 1, 4, 8),
            (1e308, 10**6, 4, 4, 10**6),
            (1.25, 0, 2, 4, 0),
        ],
    )
    def test_is_rounded_up_and_at_most_all_rows(self, factor, rows, count, experts, expected):
        assert routing.capacity(factor, rows, count, experts) == expected


class TestAssign:
    def test_everything_fits(self):
        order = orders([A, B], [B, C], [D, A])
        assert routing.assign(order, 2, 3).tolist() == [[A, B], [B, C], [D, A]]

    def test_overflow_goes_to_the_next_best(self):
        # A takes the first two; the third query turns to its second choice.
        order = orders([A, B], [A, C], [A, D], [D, A])
        assert routing.assign(order, 1, 2).tolist() == [[A], [A], [D], [D]]

    def test_next_best_skips_what_is_full(self):
        # Queries 0 and 1 fill A and B; query 2 wants A, then B, and gets C.
        order = orders([A], [B], [A, B, C], [C])
        assert routing.assign(order, 1, 1).tolist() == [[A], [B], [C], [D]]

    def test_first_choices_come_before_second_ones(self):
        # Query 0 has B second, but query 1 has it first.
        order = orders([A, B, C], [B, A, D])
        assert routing.assign(order, 2, 1).tolist() == [[A, C], [B, D]]

    def test_an_overflow_takes_room_from_later_rows(self):
        # Query 1 overflows from A to B before query 2 asks for B.
        order = orders([A], [A, B], [B, C])
        assert routing.assign(order, 1, 1).tolist() == [[A], [B], [C]]

    def test_an_expert_that_a_query_has_is_passed_over(self):
        # Query 1 gets B for A; its second choice is B itself, so it gets C.
        order = orders([A, D], [A, B, C])
        assert routing.assign(order, 2, 1).tolist() == [[A, D], [B, C]]

    def test_none_left(self):
        order = np.array([[0, 1], [0, 1], [0, 1]])
        assert routing.assign(order, 1, 1).tolist() == [[0], [1], [-1]]
        assert routing.assign(order, 2, 1).tolist() == [[0, -1], [1, -1], [-1, -1]]

    def test_no_rows(self):
        assert routing.assign(np.zeros((0, 3), np.intp), 2, 0).shape == (0, 2)

    @given(matrices(), st.data())
    def test_against_one_by_one(self, logits, data):
        rows, experts = logits.shape
        count = data.draw(st.integers(1, experts))
        limit = data.draw(st.integers(0 if rows == 0 else 1, max(1, rows)))
        order = routing.rank(logits)
        got = routing.assign(order, count, limit)
        expected = reference_moe.serve(order.tolist(), count, limit)
        assert [[e for e in row if e >= 0] for row in got.tolist()] == expected
        served = [set(row) for row in expected]
        wanted = order[:, :count]
        overflowed, dropped = routing.overflow(wanted, got)
        assert dropped == sum(not row for row in served)
        chosen = zip(wanted.tolist(), served, strict=True)
        assert overflowed == sum(len(set(row) - mine) for row, mine in chosen)

    def test_many_rows(self):
        rng = np.random.default_rng(0)
        order = routing.rank(rng.standard_normal((2000, 8)) + np.arange(8))
        got = routing.assign(order, 3, 800)
        assert [[e for e in row if e >= 0] for row in got.tolist()] == reference_moe.serve(
            order.tolist(), 3, 800
        )


class TestWeights:
    def test_softmax_over_the_experts_of_a_row(self):
        logits = np.log([[0.1, 0.2, 0.3, 0.4]])
        got = routing.mixture_weights(logits, np.array([[D, B]]))
        np.testing.assert_allclose(got, [[2 / 3, 1 / 3]])

    def test_survivors_are_renormalised(self):
        logits = np.log([[0.1, 0.2, 0.3, 0.4]] * 3)
        got = routing.mixture_weights(logits, np.array([[C, A], [A, -1], [-1, -1]]))
        np.testing.assert_allclose(got, [[0.75, 0.25], [1, 0], [0, 0]])

    def test_large_logits(self):
        logits = np.array([[1000.0, 0.0], [0.0, -1000.0], [1e38, -1e38]], np.float32)
        got = routing.mixture_weights(logits, np.array([[1, -1], [1, -1], [0, 1]]))
        np.testing.assert_array_equal(got, [[1, 0], [1, 0], [1, 0]])

    def test_nan_stays_in_its_row(self):
        logits = np.array([[np.nan, 0.0], [0.0, 0.0]])
        got = routing.mixture_weights(logits, np.array([[0, 1], [0, 1]]))
        np.testing.assert_array_equal(got, [[np.nan, np.nan], [0.5, 0.5]])

    @given(matrices())
    def test_probabilities(self, logits):
        shares, lse = routing.probabilities(logits)
        powers = np.exp(logits.astype(np.float64))
        np.testing.assert_allclose(shares, powers / powers.sum(1, keepdims=True), rtol=1e-12)
        np.testing.assert_allclose(lse, np.log(powers.sum(1)), rtol=1e-12, atol=1e-12)


class TestGroups:
    def test_rows_by_expert(self):
        groups = routing.rows_by_expert(np.array([[C, A], [A, -1], [-1, -1], [C, D]]), 4)
        rows = [rows.tolist() for rows, _ in groups]
        positions = [positions.tolist() for _, positions in groups]
        assert rows == [[0, 1], [], [0, 3], [3]]
        assert positions == [[1, 0], [], [0, 0], [1]]

    def test_no_rows(self):
        groups = routing.rows_by_expert(np.zeros((0, 2), np.intp), 3)
        assert [len(rows) for rows, _ in groups] == [0, 0, 0]


def balance(logits, choice):
    return routing.auxiliary_loss(np.asarray(logits), np.asarray(choice), 1.0, 0.0)


class TestLosses:
    def test_balanced_is_one(self):
        # Four queries, each sure of another expert.
        logits = 50 * np.eye(4)
        assert balance(logits, routing.rank(logits)[:, :1]) == pytest.approx(1)
        # Two choices each, of equal shares: every expert is chosen twice.
        logits = np.array([[5.0, 5, 0, 0], [0, 0, 5, 5], [5, 5, 0, 0], [0, 0, 5, 5]])
        assert balance(logits, routing.rank(logits)[:, :2]) == pytest.approx(1)

    def test_collapsed(self):
        # All queries to A with P = (0.7, 0.1, 0.1, 0.1): f = (1, 0, 0, 0).
        logits = np.log([[0.7, 0.1, 0.1, 0.1]] * 5)
        assert balance(logits, [[A]] * 5) == pytest.approx(2.8)

    def test_by_hand(self):
        # f = (2, 1, 1) / 4, mean P = (0.45, 0.35, 0.2).
        logits = np.log([[0.6, 0.3, 0.1], [0.3, 0.4, 0.3]])
        wanted = 3 * (0.5 * 0.45 + 0.25 * 0.35 + 0.25 * 0.2)
        assert balance(logits, [[A, B], [C, A]]) == pytest.approx(wanted)

    def test_z_loss(self):
        # logsumexp is ln 4 and, to rounding, 2.
        logits = np.array([[0, 0, np.log(2)], [2, -100, -100]])
        got = routing.auxiliary_loss(logits, np.array([[C], [A]]), 0.0, 0.5)
        assert got == pytest.approx(0.5 * (np.log(4) ** 2 + 2**2) / 2)

    def test_no_rows(self):
        assert routing.auxiliary_loss(np.zeros((0, 3)), np.zeros((0, 2), int), 1.0, 1.0) == 0

    @given(matrices(least=1), st.data())
    def test_against_one_by_one(self, logits, data):
        count = data.draw(st.integers(1, logits.shape[1]))
        wanted, z = reference_moe.losses(logits, count)
        chosen = routing.rank(logits)[:, :count]
        assert balance(logits, chosen) == pytest.approx(wanted)
        both = routing.auxiliary_loss(logits, chosen, 0.3, 0.7)
        assert both == pytest.approx(0.3 * wanted + 0.7 * z)

"""MoEAttention in training: capacity, losses, jitter; and the statistics of routing."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference_moe
from moe_cases import DIM, arrays, by_hand, every_type, expected, mixture, near

from ruvector import DimensionMismatchError, InvalidMaskError

pytestmark = pytest.mark.usefixtures("backend")


class TestTraining:
    def test_capacity_by_hand(self):
        # ceil(1.0 * 4 * 1 / 2) = 2: the third and fourth query overflow to expert 1.
        attention, q = by_hand([2, 1], [2, 1], [2, 0], [3, 1], top_k=1, expert_capacity=1.0)
        _, k, v = arrays(1, 9)
        output = attention.compute(q, k, v, training=True)
        wanted = expected(attention, q, k, v, limit=2)
        assert wanted[3] == [[0], [0], [1], [1]]
        near(output, wanted[0])
        stats = attention.routing_stats
        assert stats.routings.tolist() == [2, 2]
        assert (stats.queries, stats.overflowed, stats.dropped) == (4, 2, 0)
        # Without training there is no capacity.
        near(attention.compute(q, k, v), expected(attention, q, k, v)[0])
        assert attention.routing_stats.routings.tolist() == [6, 2]

    def test_none_left(self):
        # ceil(0.5 * 4 * 1 / 2) = 1 a expert: two queries are dropped.
        attention, q = by_hand([2, 1], [2, 1], [2, 1], [2, 1], top_k=1, expert_capacity=0.5)
        _, k, v = arrays(1, 9)
        output, weights = attention.compute(q, k, v, training=True, return_weights=True)
        assert output[:2].any(axis=1).all()
        assert not output[2:].any()
        assert not weights[2:].any()
        stats = attention.routing_stats
        assert stats.routings.tolist() == [1, 1]
        assert (stats.queries, stats.overflowed, stats.dropped) == (4, 3, 2)

    def test_survivors_are_renormalised(self):
        # Two queries, two choices, room for one each: each keeps one expert, at weight 1.
        attention, q = by_hand([2, 1], [2, 1], top_k=2, expert_capacity=0.5)
        _, k, v = arrays(1, 9)
        output, weights = attention.compute(q, k, v, training=True, return_weights=True)
        near(output, expected(attention, q, k, v, limit=1)[0])
        near(weights.sum(axis=1), np.ones(2))
        assert attention.routing_stats.routings.tolist() == [1, 1]

    def test_a_batch_shares_one_capacity(self):
        attention, q = by_hand([2, 1], [2, 1], [2, 0], [3, 1], top_k=1, expert_capacity=1.0)
        _, k, v = arrays(1, 9)
        flat = attention.compute(q, k, v, training=True)
        near(attention.compute(q.reshape(2, 2, DIM), k, v, training=True).reshape(4, DIM), flat)

    @every_type
    def test_with_room_for_all_it_is_plain(self, types):
        attention = mixture(types, expert_capacity=10.0)
        q, k, v = arrays(30, 9)
        output, loss = attention.compute_with_aux_loss(q, k, v)
        np.testing.assert_array_equal(output, attention.compute(q, k, v))
        assert type(loss) is float

    def test_losses_by_hand(self):
        # Each query is all but sure of another expert: balanced.
        rows = 40 * np.eye(4)
        attention, q = by_hand(*rows, top_k=1, load_balance_weight=0.5)
        _, k, v = arrays(1, 9)
        assert attention.compute_with_aux_loss(q, k, v)[1] == pytest.approx(0.5)
        # All are sure of the first: N f_0 P_0 = 4; the loss does not see the capacity.
        attention, q = by_hand(*rows[[0, 0, 0, 0]], top_k=1, load_balance_weight=0.5)
        assert attention.compute_with_aux_loss(q, k, v)[1] == pytest.approx(2.0)
        assert attention.routing_stats.routings.tolist() == [2, 2, 0, 0]
        # logsumexp is ln(3 + 1) and ln(1 + 3 e).
        attention, q = by_hand(
            np.log([1, 1, 2]),
            [0, 0, 1],
            top_k=1,
            load_balance_weight=0.0,
            aux_loss_weight=0.1,
        )
        loss = attention.compute_with_aux_loss(q, k, v)[1]
        assert loss == pytest.approx(0.1 * (np.log(4) ** 2 + np.log(2 + np.e) ** 2) / 2)

    def test_losses_against_the_reference(self):
        attention = mixture(experts=6, load_balance_weight=0.7, aux_loss_weight=0.3)
        q, k, v = arrays(50, 9)
        (output, weights), loss = attention.compute_with_aux_loss(q, k, v, return_weights=True)
        limit = reference_moe.capacity(1.25, 50, 2, 6)
        wanted, wanted_weights, logits, served = expected(attention, q, k, v, limit=limit)
        near(output, wanted)
        near(weights, wanted_weights)
        balance, z = reference_moe.losses(logits, 2)
        assert loss == pytest.approx(0.7 * balance + 0.3 * z, rel=1e-5)
        counts = np.bincount(np.concatenate(served), minlength=6)
        assert attention.routing_stats.routings.tolist() == counts.tolist()

    def test_losses_do_not_depend_on_the_shape_of_the_batch(self):
        attention = mixture(load_balance_weight=1.0, aux_loss_weight=1.0, expert_capacity=9.0)
        q, k, v = arrays(12, 9)
        _, flat = attention.compute_with_aux_loss(q, k, v)
        _, batched = attention.compute_with_aux_loss(
            q.reshape(3, 4, DIM), np.stack([k] * 3), np.stack([v] * 3)
        )
        assert batched == pytest.approx(flat)

    def test_no_queries(self):
        output, loss = mixture(aux_loss_weight=1.0).compute_with_aux_loss(*arrays(0, 9))
        assert output.shape == (0, DIM)
        assert loss == 0

    def test_jitter(self):
        quiet = mixture(("standard",) * 8, count=1, expert_capacity=99.0)
        loud = mixture(("standard",) * 8, count=1, expert_capacity=99.0, jitter_noise=0.9)
        q, k, v = arrays(400, 9)
        plain = quiet.compute(q, k, v)
        np.testing.assert_array_equal(loud.compute(q, k, v), plain)
        first = loud.compute(q, k, v, training=True)
        changed = (first != plain).any(axis=1)
        # What is not routed elsewhere is attended as ever: the expert sees the query itself.
        assert 20 < changed.sum() < 380
        assert (loud.compute(q, k, v, training=True) != first).any()
        again = mixture(("standard",) * 8, count=1, expert_capacity=99.0, jitter_noise=0.9)
        np.testing.assert_array_equal(again.compute(q, k, v, training=True), first)


class TestStatistics:
    def test_usage(self):
        attention, q = by_hand([3, 1, 0], [3, 0, 1], [0, 3, 1], top_k=2)
        _, k, v = arrays(1, 9)
        assert attention.get_expert_usage().tolist() == [0, 0, 0]
        attention.compute(q, k, v)
        np.testing.assert_allclose(attention.get_expert_usage(), [2 / 6, 2 / 6, 2 / 6])
        attention.compute(q[0], k, v)
        np.testing.assert_allclose(attention.get_expert_usage(), [3 / 8, 3 / 8, 2 / 8])
        assert attention.get_expert_usage().dtype == np.float64
        np.testing.assert_array_equal(attention.expert_usage, attention.get_expert_usage())
        assert attention.routing_stats.queries == 4
        attention.reset_routing_stats()
        assert attention.get_expert_usage().tolist() == [0, 0, 0]
        assert attention.routing_stats.queries == 0

    def test_filling_up_is_not_counted(self):
        # Memories of their own for one and for three queries of an expert.
        attention, q = by_hand([1, 0], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0], top_k=1)
        _, k, v = arrays(1, 9, batch=(2,))
        attention.compute(q.reshape(2, 3, DIM), k, v)
        assert attention.routing_stats.routings.tolist() == [3, 3]

    def test_what_is_returned_is_no_view(self):
        attention = mixture()
        attention.compute(*arrays(5, 9))
        attention.routing_stats.routings[...] = 0
        assert attention.routing_stats.routings.sum() == 10

    def test_errors_change_nothing(self):
        attention = mixture(jitter_noise=0.5)
        q, k, v = arrays(5, 9)
        twin = copy.deepcopy(attention)
        with pytest.raises(DimensionMismatchError):
            attention.compute(q, k, v[:3], training=True)
        with pytest.raises(DimensionMismatchError):
            attention.compute(q, k, v, training=True, out=np.empty(3, np.float32))
        with pytest.raises(InvalidMaskError):
            attention.compute(q, k, v, training=True, mask=np.ones(4, bool))
        assert attention.routing_stats.queries == 0
        np.testing.assert_array_equal(
            attention.compute(q, k, v, training=True), twin.compute(q, k, v, training=True)
        )

    def test_calls_at_once_are_all_counted(self):
        attention = mixture()
        q, k, v = arrays(5, 9)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: attention.compute(q, k, v), range(200)))
        assert attention.routing_stats.queries == 1000
        assert attention.routing_stats.routings.sum() == 2000

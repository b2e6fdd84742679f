"""Attention with a part in the Poincare ball: the softmax kernels' ``attend_ball``."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import reference_ball
from ball_cases import STATE, ball_case
from hypothesis import given
from hypothesis import strategies as st
from softmax_cases import SIZES, STORAGE, quiet, to_storage

from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec, BallSpec

pytestmark = pytest.mark.usefixtures("backend")


class TestShapes:
    @pytest.mark.parametrize("num_queries", [1, 2, 17, 33])
    @pytest.mark.parametrize("flat", [None, 8])
    def test_lengths(self, num_queries, flat):
        for num_keys in (1, 7, 16, 33):
            ball_case(
                num_keys, heads=1, num_queries=num_queries, num_keys=num_keys, flat=flat
            ).check()

    @pytest.mark.parametrize("num_queries", [1, 18])
    @pytest.mark.parametrize("dim", SIZES)
    def test_widths(self, num_queries, dim):
        ball_case(heads=1, num_queries=num_queries, dim=dim, dim_v=dim + 1, flat=None).check()
        ball_case(heads=1, num_queries=num_queries, dim=7, flat=dim, flat_v=dim + 2).check()

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("tangent", [False, True])
    @pytest.mark.parametrize("num_queries", [1, 19])
    def test_storage_types(self, dtype, tangent, num_queries):
        for flat in (None, 16):
            ball_case(
                num_queries=num_queries, num_keys=33, dtype=dtype, tangent=tangent, flat=flat
            ).check()

    @pytest.mark.parametrize(
        ("batch", "heads", "key_heads"), [(3, 1, 1), (2, 4, 2), (1, 6, 1), (2, 3, 3)]
    )
    def test_batch_and_grouped_heads(self, batch, heads, key_heads):
        for num_queries in (1, 7):
            ball_case(
                batch=batch, heads=heads, key_heads=key_heads, num_queries=num_queries
            ).check()

    @pytest.mark.parametrize("num_queries", [1, 20])
    def test_many_keys(self, num_queries):
        # Too many for the reference, which goes pair by pair: parts that merge instead.
        case = ball_case(heads=1, num_queries=num_queries, num_keys=20_000, flat_v=6)
        out, state, lse = case.attend()
        parts = [_part(case, slice(i, i + 4000)) for i in range(0, 20_000, 4000)]
        for index, whole in ((0, out), (1, state)):
            merged, merged_lse = _merged([part[index] for part in parts], parts)
            np.testing.assert_allclose(merged, whole[0, 0], rtol=2e-4, atol=2e-4)
            np.testing.assert_allclose(merged_lse, lse[0, 0], rtol=1e-5)

    @pytest.mark.parametrize(
        "shape",
        [{"batch": 0}, {"num_queries": 0}, {"num_keys": 0}, {"dim_v": 0}, {"flat_v": 0}],
        ids=str,
    )
    def test_empty_axes(self, shape):
        case = ball_case(**shape)
        out, state, lse = case.attend()
        if shape == {"num_keys": 0}:
            assert (out == 0).all()
            assert (state == 0).all()
            assert (lse == -np.inf).all()
        elif 0 in state.shape[:3]:
            assert state.shape == (*case.curved[0].shape[:3], 7)
        else:
            case.check()

    def test_lse_is_optional(self):
        case = ball_case(num_queries=18)
        out, state, _ = case.attend()
        own, own_state = np.empty_like(out), np.empty_like(state)
        _kernels.softmax.attend_ball(
            *case.flat, own, *case.curved, own_state, None, case.spec, case.ball, 1
        )
        np.testing.assert_array_equal(own, out)
        np.testing.assert_array_equal(own_state, state)


def _part(case, keys):
    query, key, value = case.flat
    ball_query, ball_key, ball_value = case.curved
    shard = replace(
        case,
        flat=(query, key[:, :, keys], value[:, :, keys]),
        curved=(ball_query, ball_key[:, :, keys], ball_value[:, :, keys]),
    )
    return shard.attend()


def _merged(outputs, parts):
    outputs = np.stack([o[0, 0] for o in outputs])
    lses = np.stack([part[2][0, 0] for part in parts])
    out, lse = np.empty(outputs.shape[1:], np.float32), np.empty(lses.shape[1:], np.float32)
    _kernels.softmax.merge(outputs, lses, out, lse)
    return out, lse


class TestFeatures:
    @pytest.mark.parametrize("curvature", [0.01, 0.5, 3.0, 100.0])
    @pytest.mark.parametrize("tangent", [False, True])
    def test_curvatures(self, curvature, tangent):
        for num_queries in (1, 17):
            ball_case(num_queries=num_queries, curvature=curvature, tangent=tangent).check()

    @pytest.mark.parametrize(
        "spec",
        [
            {"causal": True, "bottom_right": True},
            {"left": 3, "right": 1, "num_sinks": 2},
            {"softcap": 1.5},
            {"slopes": np.array([0.5, 2.0], np.float32)},
            {"sink_logits": np.array([0.5, -1.0], np.float32)},
            {"positions": np.arange(6, 11), "causal": True},
        ],
        ids=lambda spec: "-".join(spec),
    )
    def test_score_options(self, spec):
        for num_keys in (9, 40):
            ball_case(num_keys=num_keys, **spec).check()
        if "positions" not in spec:
            ball_case(num_queries=1, num_keys=20, **spec).check()

    @given(
        st.integers(0, 10_000),
        st.integers(1, 20),
        st.integers(1, 25),
        st.booleans(),
        st.booleans(),
        st.floats(0, 1),
    )
    def test_all_at_once(self, seed, m, n, flat, tangent, density):
        rng = np.random.default_rng(seed)
        ball_case(
            seed,
            num_queries=m,
            num_keys=n,
            flat=8 if flat else None,
            tangent=tangent,
            radius=rng.uniform(0.1, 0.9),
            curvature=rng.uniform(0.2, 4),
            mask=rng.random((1, 2, m, n)) < density,
            bias=rng.standard_normal((1, 2, m, n)).astype(np.float32),
            causal=bool(seed % 2),
            bottom_right=True,
            left=int(seed % 7) - 1,
        ).check()

    def test_threads_do_not_change_the_result(self, backend):
        case = ball_case(heads=3, num_queries=70, num_keys=300, dim=16)
        long = ball_case(heads=1, num_queries=1, num_keys=30_000, dim=16)
        for each in (case, long):
            one, three = each.attend(1), each.attend(3)
            for a, b in zip(one, three, strict=True):
                if backend[0] == "native":
                    np.testing.assert_array_equal(a, b)
                else:
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


class TestAccuracy:
    @pytest.mark.parametrize("num_queries", [1, 24])
    @pytest.mark.parametrize("norm", [0.1, 0.9, 0.99, 0.999])
    def test_points_a_ten_thousandth_apart(self, num_queries, norm):
        rng = np.random.default_rng(0)
        center = _on_sphere(rng, 1, 12, norm)
        points = (center + 1e-4 * _on_sphere(rng, num_queries + 30, 12, 1)).astype(np.float32)
        self.check_distances(points[:num_queries], points[num_queries:], 1.0, rtol=1e-5)

    @pytest.mark.parametrize("num_queries", [1, 24])
    @pytest.mark.parametrize("norm", [0.9, 0.99, 0.9999])
    @pytest.mark.parametrize("curvature", [1.0, 2.0])
    def test_near_the_boundary(self, num_queries, norm, curvature):
        rng = np.random.default_rng(0)
        points = _on_sphere(rng, num_queries + 30, 12, norm / np.sqrt(curvature))
        points = points.astype(np.float32)
        self.check_distances(points[:num_queries], points[num_queries:], curvature, rtol=1e-5)

    @pytest.mark.parametrize("num_queries", [1, 24])
    def test_beyond_the_boundary(self, num_queries):
        points = _on_sphere(np.random.default_rng(0), num_queries + 30, 12, 3.0)
        points = points.astype(np.float32)
        self.check_distances(points[:num_queries], points[num_queries:], 1.0, rtol=1e-5)

    @pytest.mark.parametrize("num_queries", [1, 24])
    def test_a_point_from_itself(self, num_queries):
        points = _on_sphere(np.random.default_rng(0), 30, 12, 0.9).astype(np.float32)
        self.check_distances(points[:num_queries], points, 1.0, rtol=1e-5)

    @pytest.mark.parametrize("num_queries", [1, 24])
    def test_long_tangent_vectors(self, num_queries):
        points = _on_sphere(np.random.default_rng(0), num_queries + 30, 12, 2.5)
        points = points.astype(np.float32)
        self.check_distances(
            points[:num_queries], points[num_queries:], 1.0, rtol=1e-5, tangent=True
        )

    def check_distances(self, queries, keys, c, *, rtol, tangent=False):
        """Look at one distance at a time: L over a single key is the score."""
        q, k = queries[None, None], keys[None, None]
        state = np.empty((1, 1, len(queries), 2), np.float32)
        lse = np.empty((1, 1, len(queries)), np.float32)
        spec = AttentionSpec(scale=1.0)
        ball = BallSpec(c, 1.0, tangent)
        got = np.empty((len(queries), len(keys)))
        for j in range(len(keys)):
            one = np.ascontiguousarray(k[:, :, j : j + 1])
            with quiet():
                _kernels.softmax.attend_ball(
                    *(None,) * 4, q, one, one[..., :1], state, lse, spec, ball, 1
                )
            got[:, j] = -lse[0, 0]
        for i, j in np.ndindex(got.shape):
            x, y = (reference_ball.into_ball(p, c, tangent) for p in (queries[i], keys[j]))
            wanted = reference_ball.distance(x, y, c)
            assert got[i, j] == pytest.approx(wanted, rel=rtol, abs=1e-7)


def _on_sphere(rng, count, dim, norm):
    x = rng.standard_normal((count, dim))
    return norm * x / np.linalg.norm(x, axis=1, keepdims=True)


POISON = [np.nan, np.inf]


class TestPoison:
    @pytest.mark.parametrize("poison", POISON)
    @pytest.mark.parametrize("where", ["key", "value", "ball key", "ball value"])
    @pytest.mark.parametrize("shape", [(1, 9), (17, 33)])
    @pytest.mark.parametrize("how", ["mask", "bias"])
    def test_behind_a_mask(self, shape, how, where, poison):
        visible = np.ones((1, 2, *shape), bool)
        visible[..., 1::2] = False
        visible[:, :, 0] = False
        option = {"mask": visible}
        if how == "bias":
            option = {"bias": np.where(visible, np.float32(0.25), np.float32(-np.inf))}
        case = ball_case(num_queries=shape[0], num_keys=shape[1], **option)
        clean = case.attend()
        parts = case.curved if where.startswith("ball") else case.flat
        parts[2 if where.endswith("value") else 1][:, :, 1::2] = poison
        for a, b in zip(case.attend(), clean, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        assert (case.attend()[1][:, :, 0] == 0).all()
        assert (case.attend()[2][:, :, 0] == -np.inf).all()

    @pytest.mark.parametrize("which", [0, 1, 2])
    @pytest.mark.parametrize("num_queries", [1, 17])
    def test_what_is_attended_to_poisons_its_rows_alone(self, which, num_queries):
        mask = np.ones((1, 2, num_queries, 33), bool)
        mask[0, 1, :, 5] = False
        case = ball_case(num_queries=num_queries, num_keys=33, mask=mask)
        clean = case.attend()
        case.curved[which][:, :, 0 if which == 0 else 5, 2] = np.nan
        _, state, lse = case.attend()
        if which == 0:
            assert np.isnan(state[:, :, 0]).all()
            assert np.isnan(lse[:, :, 0]).all()
            np.testing.assert_allclose(
                state[:, :, 1:], clean[1][:, :, 1:], rtol=1e-5, atol=1e-5
            )
        else:
            assert np.isnan(state[0, 0]).all()
            np.testing.assert_allclose(state[0, 1], clean[1][0, 1], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(lse[0, 1], clean[2][0, 1], rtol=1e-6)


class TestMemory:
    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("num_queries", [1, 18])
    def test_strides_and_read_only(self, dtype, num_queries):
        case = ball_case(
            batch=2, heads=4, key_heads=2, num_queries=num_queries, num_keys=20, dtype=dtype
        )
        for name in ("flat", "curved"):
            arrays = []
            for array in getattr(case, name):
                wide = np.zeros((*array.shape[:3], array.shape[3] + 3), array.dtype)
                wide[..., 1:-2] = array
                view = wide.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)[..., 1:-2]
                view = view[:, :, ::-1].copy()[:, :, ::-1] if name == "flat" else view
                view.flags.writeable = False
                arrays.append(view)
            setattr(case, name, tuple(arrays))
        case.check()

    def test_keys_that_repeat_over_a_batch(self):
        case = ball_case(batch=3, num_queries=17)
        query, *memory = case.curved
        case.curved = (query, *(np.broadcast_to(a[:1], a.shape) for a in memory))
        case.check()

    @pytest.mark.parametrize("num_queries", [1, 18])
    def test_results_go_where_they_are_wanted(self, num_queries):
        case = ball_case(num_queries=num_queries, num_keys=33)
        _, expected, _ = case.attend()
        memory = np.full((1, num_queries + 2, 2, 11), 5, np.float32)
        state = memory[:, -2:0:-1, :, 2:9].transpose(0, 2, 1, 3)
        out = np.empty((1, 2, num_queries, 7), np.float32)
        _kernels.softmax.attend_ball(
            *case.flat, out, *case.curved, state, None, case.spec, case.ball, 1
        )
        np.testing.assert_array_equal(state, expected)
        assert (memory[:, [0, -1]] == 5).all()
        assert (memory[..., [0, 1, 9, 10]] == 5).all()

    def test_inputs_are_left_alone(self):
        case = ball_case(num_queries=18, num_keys=33, tangent=True)
        before = [a.copy() for a in (*case.flat, *case.curved)]
        case.attend()
        case.weights()
        for now, then in zip((*case.flat, *case.curved), before, strict=True):
            np.testing.assert_array_equal(now, then)


class TestMerging:
    @given(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 1000))
    def test_any_split_gives_the_whole(self, cuts, seed):
        case = ball_case(seed, heads=1, num_queries=6, num_keys=40, flat_v=6)
        _, state, lse = case.attend()
        ends = [0, *sorted(cuts), 40]
        parts = [_part(case, slice(a, b)) for a, b in pairwise(ends)]
        merged, merged_lse = _merged([part[1] for part in parts], parts)
        bound = STATE["float32"] * np.abs(state).max()
        np.testing.assert_allclose(merged, state[0, 0], rtol=1e-5, atol=bound)
        np.testing.assert_allclose(merged_lse, lse[0, 0], rtol=1e-5, atol=1e-5)


class TestSpaceScores:
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_both_parts(self, dtype):
        case = ball_case(heads=4, key_heads=2, num_queries=7, num_keys=9, dtype=dtype)
        shape = (1, 4, 7, 9)
        kind = np.float64 if dtype == "float64" else np.float32
        flat, curved = np.empty(shape, kind), np.empty(shape, kind)
        with quiet():
            _kernels.hyperbolic.space_scores(
                *case.flat[:2], flat, *case.curved[:2], curved, 0.5, case.ball, 1
            )
        weights = np.exp(flat * 0.6 + curved)
        weights /= weights.sum(axis=-1, keepdims=True)
        # 0.3 q.k - distance is what the case scores.
        tolerance = 3e-3 if dtype == "bfloat16" else 2e-5
        np.testing.assert_allclose(weights, case.reference()[3], rtol=tolerance, atol=tolerance)

    def test_bfloat16_bits_are_read(self):
        ones = to_storage(np.ones((1, 1, 1, 4)), "bfloat16")
        flat, curved = np.empty((2, 1, 1, 1, 1), np.float32)
        _kernels.hyperbolic.space_scores(
            ones, ones, flat, ones, ones, curved, 1.0, BallSpec(1.0, 1.0, True), 1
        )
        assert flat == 4
        assert curved == 0

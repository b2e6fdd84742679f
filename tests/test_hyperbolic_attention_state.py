"""The states of HyperbolicAttention that merge, and its Frechet means."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hyperbolic_attention_cases import ATTENTIONS, DIM, arrays, near
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    HyperbolicAttention,
    InvalidConfigError,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestState:
    @given(
        st.lists(st.integers(0, 20), max_size=4),
        st.sampled_from(ATTENTIONS),
        st.integers(0, 1000),
    )
    def test_any_split_gives_the_whole(self, cuts, attention, seed):
        q, k, v = arrays(5, 20, 6, seed=seed, c=attention.curvature)
        mask = np.random.default_rng(seed).random((5, 20)) < 0.7
        ends = [0, *sorted(cuts), 20]
        parts = [
            attention.compute_state(q, k[a:b], v[a:b], mask=mask[:, a:b])
            for a, b in pairwise(ends)
        ]
        state, lse = attention.merge_states(*zip(*parts, strict=True))
        output, whole_lse = attention.compute(q, k, v, mask=mask, return_lse=True)
        near(attention.finalize(state), output)
        near(lse, whole_lse)

    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_shapes_and_dtypes(self, dtype):
        attention = ATTENTIONS[0]
        kind = np.float64 if dtype == "float64" else np.float32
        for m, batch, lead in ((None, (), ()), (4, (), (4,)), (4, (3,), (3, 4))):
            q, k, v = arrays(m, 9, 5, dtype=dtype, batch=batch)
            state, lse = attention.compute_state(q, k, v)
            assert (state.shape, np.shape(lse)) == ((*lead, 6), lead)
            assert state.dtype == lse.dtype == kind
            output = attention.finalize(state)
            assert (output.shape, output.dtype) == ((*lead, 5), kind)
            near(output, attention.compute(q, k, v).astype(np.float64), "float16")

    def test_no_keys_are_the_identity(self):
        q, k, v = arrays(4, 9, 5)
        attention = ATTENTIONS[0]
        none = attention.compute_state(q, k[:0], v[:0])
        assert (none[0] == 0).all()
        assert (none[1] == -np.inf).all()
        assert (attention.finalize(none[0]) == 0).all()
        some = attention.compute_state(q, k, v)
        state, lse = attention.merge_states(*zip(none, some, none, strict=True))
        np.testing.assert_array_equal(state, some[0])
        np.testing.assert_array_equal(lse, some[1])

    def test_it_is_merge_states_of_the_package(self):
        q, k, v = arrays(4, 9)
        parts = [ATTENTIONS[0].compute_state(q, k[i::2], v[i::2]) for i in range(2)]
        for a, b in zip(
            ATTENTIONS[0].merge_states(*zip(*parts, strict=True)),
            ruvector.merge_states(*zip(*parts, strict=True)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)

    def test_finished_midpoints_do_not_merge(self):
        q, k, v = arrays(4, 20, radius=0.95, dtype="float64")
        attention = ATTENTIONS[0]
        parts = [
            attention.compute(q, k[a:b], v[a:b], return_lse=True) for a, b in ((0, 4), (4, 20))
        ]
        wrong, _ = ruvector.merge_states(*zip(*parts, strict=True))
        assert np.abs(wrong - attention.compute(q, k, v)).max() > 1e-3

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda a: a.finalize(np.zeros((3, 0))),
                DimensionMismatchError,
                "state must have shape (..., dim_v + 1), got (3, 0)",
            ),
            (
                lambda a: a.finalize(0.5),
                DimensionMismatchError,
                "state must have shape (..., dim_v + 1), got ()",
            ),
            (
                lambda a: a.compute_state(np.zeros(DIM), np.zeros((2, 3)), np.zeros((2, 3))),
                DimensionMismatchError,
                "keys must have shape (n, 8), got (2, 3)",
            ),
            (lambda a: a.merge_states([], []), EmptyInputError, "outputs must have at least"),
        ],
    )
    def test_errors(self, call, error, message):
        with pytest.raises(error, match="^" + re.escape(message)):
            call(ATTENTIONS[0])

    def test_the_frechet_mean_has_none(self):
        attention = HyperbolicAttention(DIM, aggregation="frechet")
        message = "aggregation must be 'midpoint' for states, got 'frechet'"
        with pytest.raises(InvalidConfigError, match=message):
            attention.compute_state(*arrays(3, 9))
        with pytest.raises(InvalidConfigError, match=message):
            attention.finalize(np.zeros(9))


class TestFrechet:
    @pytest.mark.parametrize("inputs", ["ball", "tangent"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_is_the_mean_under_the_weights(self, inputs, dtype):
        q, k, v = arrays(5, 17, 6, dtype=dtype)
        midpoint = HyperbolicAttention(DIM, inputs=inputs)
        frechet = HyperbolicAttention(DIM, aggregation="frechet", inputs=inputs)
        got = frechet.compute(q, k, v, return_lse=True, return_weights=True)
        wanted = midpoint.compute(q, k, v, return_lse=True, return_weights=True)
        near(got[1], wanted[1], dtype)
        near(got[2], wanted[2], dtype)
        points = hyperbolic.expmap0(v, 1.0) if inputs == "tangent" else v
        points = hyperbolic.project_to_ball(points, 1.0)
        mean = hyperbolic.frechet_mean(points, 1.0, wanted[2])
        np.testing.assert_allclose(got[0], mean, atol=5e-6)
        assert np.abs(got[0] - wanted[0]).max() > 1e-4

    def test_batches_and_blocks_of_queries(self, monkeypatch):
        from ruvector import _ball_problem

        attention = HyperbolicAttention(DIM, aggregation="frechet")
        q, k, v = arrays(7, 9, batch=(3,))
        mask = np.random.default_rng(0).random((3, 7, 9)) < 0.8
        whole = attention.compute(q, k, v, mask=mask)
        shared = attention.compute(q, k[0], v[0])
        monkeypatch.setattr(_ball_problem, "_WEIGHTS", 20)
        np.testing.assert_allclose(attention.compute(q, k, v, mask=mask), whole, atol=2e-6)
        for b in range(3):
            one = attention.compute(q[b], k[b], v[b], mask=mask[b])
            np.testing.assert_allclose(whole[b], one, atol=2e-6)
            one = attention.compute(q[b], k[0], v[0])
            np.testing.assert_allclose(shared[b], one, atol=2e-6)

    def test_warns_where_it_has_not_converged(self):
        q, k, v = arrays(3, 9, radius=2.0)
        attention = HyperbolicAttention(DIM, aggregation="frechet", max_iter=1, tol=1e-9)
        with pytest.warns(RuntimeWarning, match="has not converged after 1 steps"):
            attention.compute(q, k, v)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            HyperbolicAttention(DIM, aggregation="frechet").compute(q, k, v)

    def test_unit_norm_embeddings_converge(self):
        x = arrays(30, 30)[0]
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        output = HyperbolicAttention(DIM, aggregation="frechet").compute(x, x, x)
        assert (np.linalg.norm(output.astype(float), axis=1) < 1).all()

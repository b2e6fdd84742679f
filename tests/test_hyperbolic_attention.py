"""HyperbolicAttention against the float64 reference, its state, its means, its parameters."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import warnings
from itertools import pairwise, product

import numpy as np
import pytest
import reference_ball
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    HyperbolicAttention,
    InvalidConfigError,
    InvalidMaskError,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")

DIM = 8
TOLERANCES = {"float32": 2e-5, "float64": 1e-9, "float16": 2e-3}


def arrays(m, n, dim_v=DIM, seed=0, radius=0.7, c=1.0, dtype="float32", batch=()):
    """Make queries, keys and values with norms about `radius` of the ball's."""
    rng = np.random.default_rng(seed)
    query = () if m is None else (m,)
    shapes = (*batch, *query, DIM), (*batch, n, DIM), (*batch, n, dim_v)
    return tuple(
        (radius / np.sqrt(c * s[-1]) * rng.standard_normal(s)).astype(dtype) for s in shapes
    )


def expected(attention, query, keys, values, mask=None, temperature=None):
    """Compute (output, lse, weights) of two-dimensional queries in float64."""
    spec = {}
    if mask is not None:
        mask = np.broadcast_to(mask, (1, 1, len(query), len(keys)))
        spec["mask" if mask.dtype == bool else "bias"] = mask
    c = attention.curvature
    _, state, lse, weights = reference_ball.attention(
        *(x[None, None] for x in (query, keys, values)),
        curvature=c,
        distance_scale=1 / (attention.temperature if temperature is None else temperature),
        tangent=attention.inputs == "tangent",
        scale=1.0,
        **spec,
    )
    output = np.stack([reference_ball.midpoint(row, c) for row in state[0, 0]])
    return output, lse[0, 0], weights[0, 0]


def near(got, wanted, dtype="float32", factor=1):
    bound = factor * TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)


ATTENTIONS = [
    HyperbolicAttention(DIM),
    HyperbolicAttention(DIM, curvature=-2.5, temperature=0.3),
    HyperbolicAttention(DIM, inputs="tangent", curvature=0.5),
    HyperbolicAttention(DIM, learn_curvature=True, learn_temperature=True),
]
every_attention = pytest.mark.parametrize(
    "attention", ATTENTIONS, ids=["plain", "curved", "tangent", "learned"]
)


class TestCompute:
    @every_attention
    @pytest.mark.parametrize("dtype", TOLERANCES)
    @pytest.mark.parametrize("m", [1, 5, 20])
    def test_against_the_reference(self, attention, dtype, m):
        for n, dim_v in ((1, DIM), (17, 5), (33, 11)):
            q, k, v = arrays(m, n, dim_v, c=attention.curvature, dtype=dtype)
            output, lse, weights = attention.compute(
                q, k, v, return_lse=True, return_weights=True
            )
            wanted = expected(attention, q, k, v)
            assert output.dtype == q.dtype
            assert lse.dtype == weights.dtype == np.result_type(q, np.float32)
            near(output, wanted[0], dtype)
            exact = "float32" if dtype == "float16" else dtype
            near(lse, wanted[1], exact)
            near(weights, wanted[2], exact)

    @every_attention
    def test_one_query_in_every_way(self, attention):
        q, k, v = arrays(None, 17, 5, c=attention.curvature)
        output, lse, weights = attention.compute(q, k, v, return_lse=True, return_weights=True)
        assert (output.shape, np.shape(lse), weights.shape) == ((5,), (), (17,))
        # The short way of a plain call and the long one of everything else.
        near(attention.compute(q, k, v), output)
        near(attention.compute(q.tolist(), list(k), v), output)
        near(attention.compute(q[None], k, v)[0], output)
        near(attention.compute(q, np.asfortranarray(k), v[::-1][::-1]), output)
        near(attention.compute(q.astype(np.float64), k, v), output)
        near(attention.compute_with_mask(q, k, v, None), output)
        near(asyncio.run(attention.compute_async(q, k, v)), output)
        read_only = k.copy()
        read_only.flags.writeable = False
        near(attention.compute(q, read_only, v), output)

    @every_attention
    def test_extras_in_every_combination(self, attention):
        q, k, v = arrays(3, 9, c=attention.curvature)
        whole = attention.compute(q, k, v, return_lse=True, return_weights=True)
        for lse, weights in product([False, True], repeat=2):
            got = attention.compute(q, k, v, return_lse=lse, return_weights=weights)
            wanted = whole[:1] + (whole[1:2] if lse else ()) + (whole[2:] if weights else ())
            got = got if isinstance(got, tuple) else (got,)
            assert len(got) == len(wanted)
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b)

    @every_attention
    def test_batch(self, attention):
        q, k, v = arrays(4, 9, 5, c=attention.curvature, batch=(3,))
        got = attention.compute(q, k, v, return_lse=True, return_weights=True)
        shared = attention.compute(q, k[0], v[0])
        for b in range(3):
            one = attention.compute(q[b], k[b], v[b], return_lse=True, return_weights=True)
            for a, wanted in zip(got, one, strict=True):
                near(a[b], wanted)
            near(shared[b], attention.compute(q[b], k[0], v[0]))

    @every_attention
    @pytest.mark.parametrize("m", [1, 20])
    def test_masks(self, attention, m):
        q, k, v = arrays(m, 17, c=attention.curvature)
        rng = np.random.default_rng(1)
        bias = rng.standard_normal((m, 17)).astype(np.float32)
        bias[:, 3] = -np.inf
        for mask in (rng.random(17) < 0.6, rng.random((m, 17)) < 0.6, bias, bias[0]):
            got = attention.compute(q, k, v, mask=mask, return_lse=True, return_weights=True)
            for a, wanted in zip(got, expected(attention, q, k, v, mask), strict=True):
                near(a, wanted)
            near(attention.compute_with_mask(q, k, v, mask), got[0])

    @pytest.mark.parametrize("aggregation", ["midpoint", "frechet"])
    @pytest.mark.parametrize("m", [1, 20])
    def test_what_is_hidden_does_not_leak(self, aggregation, m):
        attention = HyperbolicAttention(DIM, aggregation=aggregation)
        q, k, v = arrays(m, 17)
        mask = np.ones((m, 17), bool)
        mask[:, 1::2] = False
        mask[0] = False
        clean = attention.compute(q, k, v, mask=mask, return_lse=True)
        k[1::2], v[3::4], v[1::4] = np.nan, np.inf, np.nan
        got = attention.compute(q, k, v, mask=mask, return_lse=True)
        near(got[0], clean[0])
        near(got[1], clean[1])
        assert (got[0][0] == 0).all()
        assert got[1][0] == -np.inf

    @pytest.mark.parametrize("aggregation", ["midpoint", "frechet"])
    def test_nan_poisons_the_rows_that_see_it(self, aggregation):
        attention = HyperbolicAttention(DIM, aggregation=aggregation)
        q, k, v = arrays(4, 9)
        mask = np.ones((4, 9), bool)
        mask[1, 5] = False
        for poisoned in (k, v):
            poisoned[5, 2] = np.nan
            output = attention.compute(q, k, v, mask=mask)
            assert np.isnan(output[[0, 2, 3]]).all()
            assert np.isfinite(output[1]).all()
            poisoned[5, 2] = 0
        q[2, 0] = np.nan
        output = attention.compute(q, k, v)
        assert np.isnan(output[2]).all()
        assert np.isfinite(output[[0, 1, 3]]).all()

    @every_attention
    def test_temperature_of_one_call(self, attention):
        q, k, v = arrays(3, 9, c=attention.curvature)
        got = attention.compute_with_temperature(q, k, v, 0.1, return_lse=True)
        wanted = expected(attention, q, k, v, temperature=0.1)
        near(got[0], wanted[0])
        near(got[1], wanted[1])
        mask = np.arange(9) < 4
        near(
            attention.compute_with_temperature(q, k, v, 0.1, mask=mask),
            expected(attention, q, k, v, mask, 0.1)[0],
        )

    @pytest.mark.parametrize("aggregation", ["midpoint", "frechet"])
    def test_out(self, aggregation):
        attention = HyperbolicAttention(DIM, aggregation=aggregation)
        q, k, v = arrays(9, 9)
        wanted = attention.compute(q, k, v)
        out = np.empty((9, 2 * DIM), np.float32)[:, ::2]
        assert attention.compute(q, k, v, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        assert attention.compute(q, k, v, out=v) is v
        np.testing.assert_array_equal(v, wanted)

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        q, k, v = (x.astype(ml_dtypes.bfloat16) for x in arrays(5, 17))
        attention = HyperbolicAttention(DIM)
        output, lse = attention.compute(q, k, v, return_lse=True)
        assert output.dtype == ml_dtypes.bfloat16
        assert lse.dtype == np.float32
        wanted = expected(attention, *(x.astype(np.float64) for x in (q, k, v)))
        np.testing.assert_allclose(output.astype(float), wanted[0], atol=8e-3)
        np.testing.assert_allclose(lse, wanted[1], atol=2e-2)

    def test_no_queries(self):
        _, k, v = arrays(1, 9, 5)
        none = np.empty((0, DIM), np.float32)
        for attention in (ATTENTIONS[0], HyperbolicAttention(DIM, aggregation="frechet")):
            output, lse = attention.compute(none, k, v, return_lse=True)
            assert (output.shape, lse.shape) == ((0, 5), (0,))

    def test_embeddings_of_unit_norm(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((30, DIM))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        for attention in (HyperbolicAttention(DIM), HyperbolicAttention(DIM, inputs="tangent")):
            got = attention.compute(x, x, x, return_lse=True)
            wanted = expected(attention, x, x, x)
            near(got[0], wanted[0], "float64", 100)
            near(got[1], wanted[1], "float64", 100)

    def test_near_the_boundary_in_float32(self):
        q, k, v = arrays(20, 30)
        for x in (q, k, v):
            x *= 0.999 / np.linalg.norm(x, axis=1, keepdims=True)
        attention = HyperbolicAttention(DIM, temperature=4.0)
        got = attention.compute(q, k, v, return_lse=True)
        wanted = expected(attention, q, k, v)
        near(got[0], wanted[0], factor=5)
        near(got[1], wanted[1])
        assert (np.linalg.norm(got[0].astype(np.float64), axis=1) < 1).all()


class TestSymmetries:
    @given(st.integers(0, 10_000), st.permutations(range(12)))
    def test_the_order_of_the_keys_does_not_matter(self, seed, order):
        q, k, v = arrays(3, 12, seed=seed)
        attention = HyperbolicAttention(DIM)
        near(attention.compute(q, k[order], v[order]), attention.compute(q, k, v))

    @given(st.integers(0, 10_000), st.floats(0.2, 4), st.sampled_from(["midpoint", "frechet"]))
    def test_isometries(self, seed, c, aggregation):
        """Whatever moves queries, keys and values moves the output along."""
        rng = np.random.default_rng(seed)
        x = arrays(3, 12, seed=seed, radius=0.4, c=c, dtype="float64")
        x = [hyperbolic.project_to_ball(a, c, 0.1 / np.sqrt(c)) for a in x]
        rotation, _ = np.linalg.qr(rng.standard_normal((DIM, DIM)))
        by = 0.3 / np.sqrt(c * DIM) * rng.standard_normal(DIM)
        attention = HyperbolicAttention(DIM, c, 0.5, aggregation)
        moved = [hyperbolic.mobius_add(by, a @ rotation, c) for a in x]
        got, lse = attention.compute(*moved, return_lse=True)
        output, wanted_lse = attention.compute(*x, return_lse=True)
        wanted = hyperbolic.mobius_add(by, output @ rotation, c)
        np.testing.assert_allclose(lse, wanted_lse, rtol=1e-9)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)

    def test_a_single_key_is_the_answer(self):
        q, k, v = arrays(3, 1)
        near(HyperbolicAttention(DIM).compute(q, k, v), np.repeat(v, 3, axis=0))

    def test_cold_attention_is_the_nearest_neighbour(self):
        q, k, v = arrays(5, 30, dtype="float64", radius=0.3)
        output, weights = HyperbolicAttention(DIM, temperature=1e-3).compute(
            q, k, v, return_weights=True
        )
        nearest = hyperbolic.poincare_distance(q[:, None], k, 1.0).argmin(axis=1)
        np.testing.assert_array_equal(weights.argmax(axis=1), nearest)
        np.testing.assert_allclose(output, v[nearest], atol=1e-6)


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


class TestParameters:
    def test_nothing_is_learned_by_default(self):
        assert HyperbolicAttention(DIM).parameters() == {}
        assert HyperbolicAttention(DIM).state_dict() == {}
        HyperbolicAttention(DIM).load_state_dict({})

    def test_live_views(self):
        q, k, v = arrays(3, 9)
        attention = HyperbolicAttention(DIM, learn_curvature=True, learn_temperature=True)
        parameters = attention.parameters()
        assert set(parameters) == {"curvature", "temperature"}
        parameters["curvature"] *= 0.5
        parameters["temperature"][...] = 0.25
        assert (attention.curvature, attention.temperature) == (0.5, 0.25)
        near(attention.compute(q, k, v), HyperbolicAttention(DIM, 0.5, 0.25).compute(q, k, v))
        parameters["curvature"] *= -1
        assert attention.curvature == 0.5

    def test_state_dict_there_and_back(self):
        first = HyperbolicAttention(DIM, 0.3, 0.2, learn_curvature=True, learn_temperature=True)
        state = first.state_dict()
        first.parameters()["curvature"][...] = 9.0
        assert state["curvature"] == 0.3
        second = HyperbolicAttention(DIM, learn_curvature=True, learn_temperature=True)
        live = second.parameters()["curvature"]
        second.load_state_dict(state)
        assert (second.curvature, second.temperature) == (0.3, 0.2)
        assert live == 0.3
        assert first == HyperbolicAttention(
            DIM, 0.3, 0.2, learn_curvature=True, learn_temperature=True
        )
        again = pickle.loads(pickle.dumps(first))
        assert again.curvature == 9.0
        assert copy.deepcopy(first).parameters()["curvature"] == 9.0

    @pytest.mark.parametrize(
        ("state", "error", "message"),
        [
            ({}, InvalidConfigError, "state must hold ['curvature'], got []"),
            (
                {"curvature": 1.0, "temperature": 1.0},
                InvalidConfigError,
                "state must hold ['curvature'], got ['curvature', 'temperature']",
            ),
            (
                {"curvature": [1.0]},
                DimensionMismatchError,
                "curvature must have shape (), got (1,)",
            ),
            ({"curvature": 0.0}, InvalidConfigError, "curvature must not be 0, got 0.0"),
            (
                {"curvature": np.nan},
                InvalidConfigError,
                "curvature must be a finite number, got nan",
            ),
        ],
    )
    def test_states_that_do_not_fit(self, state, error, message):
        attention = HyperbolicAttention(DIM, 0.7, learn_curvature=True)
        with pytest.raises(error, match="^" + re.escape(message)):
            attention.load_state_dict(state)
        assert attention.curvature == 0.7

    def test_a_parameter_that_left_its_domain(self):
        q, k, v = arrays(3, 9)
        attention = HyperbolicAttention(DIM, learn_temperature=True)
        attention.parameters()["temperature"][...] = -1.0
        with pytest.raises(InvalidConfigError, match="temperature must be a positive finite"):
            attention.compute(q, k, v)


class TestConfiguration:
    def test_repr_eq_hash(self):
        attention = HyperbolicAttention(4, -2, 0.5, "frechet", "tangent", True, tol=1e-4)
        text = (
            "HyperbolicAttention(dim=4, curvature=2.0, temperature=0.5, aggregation='frechet', "
            "inputs='tangent', learn_curvature=True, learn_temperature=False, tol=0.0001, "
            "max_iter=500)"
        )
        assert repr(attention) == text
        again = eval(text, vars(ruvector))
        assert again == attention
        assert hash(again) == hash(attention)
        assert attention != HyperbolicAttention(4)
        attention.parameters()["curvature"][...] = 5.0
        assert hash(again) == hash(attention)
        for copied in (copy.copy(attention), pickle.loads(pickle.dumps(attention))):
            assert copied == attention
            assert copied.curvature == 5.0

    def test_properties(self):
        attention = HyperbolicAttention(4, 2, 0.5, max_iter=7, tol=1e-3)
        assert (attention.dim, attention.curvature, attention.temperature) == (4, 2.0, 0.5)
        assert (attention.aggregation, attention.inputs) == ("midpoint", "ball")
        assert (attention.learn_curvature, attention.learn_temperature) == (False, False)
        assert (attention.tol, attention.max_iter) == (1e-3, 7)
        with pytest.raises(AttributeError):
            attention.curvature = 1.0

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
            ({"curvature": 0}, "curvature must not be 0, got 0"),
            ({"curvature": np.inf}, "curvature must be a finite number, got inf"),
            (
                {"curvature": 1e10},
                "curvature must be less than 1e10, where the ball is as narrow as the margin",
            ),
            ({"temperature": 0}, "temperature must be a positive finite number, got 0"),
            ({"temperature": -1.0}, "temperature must be a positive finite number, got -1.0"),
            ({"temperature": 1e-13}, "temperature must be at least 1e-12, got 1e-13"),
            (
                {"aggregation": "mean"},
                "aggregation must be 'midpoint' or 'frechet', got 'mean'",
            ),
            ({"inputs": "disk"}, "inputs must be 'ball' or 'tangent', got 'disk'"),
            ({"learn_curvature": 1}, "learn_curvature must be True or False, got 1"),
            ({"learn_temperature": None}, "learn_temperature must be True or False, got None"),
            ({"tol": 0.0}, "tol must be a positive finite number, got 0.0"),
            ({"max_iter": 0}, "max_iter must be an integer of at least 1, got 0"),
        ],
    )
    def test_refused(self, keywords, message):
        with pytest.raises(InvalidConfigError, match="^" + re.escape(message)):
            HyperbolicAttention(**{"dim": 4, **keywords})

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                (np.zeros(3), np.zeros((2, 3)), np.zeros((2, 3))),
                DimensionMismatchError,
                "query must have shape (8,), (m, 8) or (B, m, 8), got (3,)",
            ),
            (
                (np.zeros(8), np.zeros((0, 8)), np.zeros((0, 8))),
                EmptyInputError,
                "keys must hold at least one vector, got shape (0, 8)",
            ),
            (
                (np.zeros(8), np.zeros((2, 8)), np.zeros((3, 8))),
                DimensionMismatchError,
                "values must hold 2 vectors, one per key, got 3",
            ),
            ((np.zeros(8), np.zeros((2, 8)), None), TypeError, "values must hold real numbers"),
        ],
    )
    def test_arrays_that_do_not_fit(self, arguments, error, message):
        narrow = [x if x is None else x.astype(np.float32) for x in arguments]
        for given_arrays in (arguments, narrow):
            with pytest.raises(error, match="^" + re.escape(message)):
                HyperbolicAttention(8).compute(*given_arrays)

    def test_masks_that_do_not_fit(self):
        q, k, v = arrays(3, 9)
        out = np.full((3, DIM), 7, np.float32)
        with pytest.raises(InvalidMaskError, match=r"^mask must have shape \(9,\) or \(3, 9\)"):
            ATTENTIONS[0].compute(q, k, v, mask=np.ones(8, bool), out=out)
        assert (out == 7).all()

    @pytest.mark.parametrize("temperature", [0, -1.0, np.nan, "1"])
    def test_temperatures_that_do_not_fit(self, temperature):
        with pytest.raises(InvalidConfigError, match=r"^temperature must be a positive"):
            ATTENTIONS[0].compute_with_temperature(*arrays(3, 9), temperature)

    def test_a_temperature_too_low_to_divide_by(self):
        attention = HyperbolicAttention(DIM, learn_temperature=True)
        with pytest.raises(InvalidConfigError, match=r"^temperature must be at least 1e-12"):
            attention.compute_with_temperature(*arrays(3, 9), 1e-310)
        attention.parameters()["temperature"][...] = 1e-310
        q, k, v = arrays(3, 9)
        with pytest.raises(InvalidConfigError, match=r"^temperature must be at least 1e-12"):
            attention.compute_with_gradients(q, k, v, q)

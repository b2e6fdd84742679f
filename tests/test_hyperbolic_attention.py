"""HyperbolicAttention against the float64 reference, and its symmetries."""

from __future__ import annotations

import asyncio
from itertools import product

import numpy as np
import pytest
from hyperbolic_attention_cases import (
    ATTENTIONS,
    DIM,
    TOLERANCES,
    arrays,
    every_attention,
    expected,
    near,
)
from hypothesis import given
from hypothesis import strategies as st

from ruvector import (
    HyperbolicAttention,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")


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

"""MoEAttention against the float64 reference: shapes, batches, dtypes, masks."""

from __future__ import annotations

import asyncio
import re

import numpy as np
import pytest
import reference_moe
from hypothesis import given
from hypothesis import strategies as st
from moe_cases import DIM, TOLERANCES, TYPES, arrays, every_type, expected, mixture, near

import ruvector
from ruvector import (
    DotProductAttention,
    HyperbolicAttention,
    InvalidMaskError,
    LinearAttention,
    MoEAttention,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestCompute:
    @every_type
    @pytest.mark.parametrize("dtype", TOLERANCES)
    @pytest.mark.parametrize("m", [1, 5, 40])
    def test_against_the_reference(self, types, dtype, m):
        attention = mixture(types)
        for n, dim_v in ((1, DIM), (17, 7), (33, 20)):
            q, k, v = arrays(m, n, dtype=dtype, dim_v=dim_v)
            output, weights = attention.compute(q, k, v, return_weights=True)
            wanted, wanted_weights, _, _ = expected(attention, q, k, v)
            assert output.dtype == q.dtype
            assert weights.dtype == np.result_type(q, np.float32)
            near(output, wanted, dtype)
            near(weights, wanted_weights, dtype)

    @every_type
    def test_shapes(self, types):
        attention = mixture(types)
        for m, batch, lead in ((None, (), ()), (4, (), (4,)), (4, (3,), (3, 4))):
            q, k, v = arrays(m, 9, batch=batch, dim_v=5)
            output, weights = attention.compute(q, k, v, return_weights=True)
            assert output.shape == (*lead, 5)
            assert weights.shape == (*lead, 9)
        q, k, v = arrays(0, 9)
        assert attention.compute(q, k, v).shape == (0, DIM)
        q, k, v = arrays(4, 9, batch=(0,))
        assert attention.compute(q, k, v).shape == (0, 4, DIM)

    @every_type
    @pytest.mark.parametrize("m", [1, 6])
    @pytest.mark.parametrize("shared", ["nothing", "memory", "keys"])
    def test_batches(self, types, m, shared):
        attention = mixture(types)
        q, k, v = arrays(m, 9, batch=(7,))
        if shared != "nothing":
            k = k[0]
        if shared == "memory":
            v = v[0]
        output, weights = attention.compute(q, k, v, return_weights=True)
        for i in range(7):
            wanted, wanted_weights, _, _ = expected(
                attention, q[i], k if k.ndim == 2 else k[i], v if v.ndim == 2 else v[i]
            )
            near(output[i], wanted)
            near(weights[i], wanted_weights)

    @every_type
    def test_a_row_does_not_depend_on_its_batch(self, types):
        attention = mixture(types, experts=None if types else 8, count=3)
        q, k, v = arrays(64, 21)
        whole = attention.compute(q, k, v)
        parts = [attention.compute(part, k, v) for part in (q[:13], q[13:])]
        near(np.concatenate(parts), whole)
        for i in (0, 31, 63):
            near(attention.compute(q[i], k, v), whole[i])
        order = np.random.default_rng(1).permutation(64)
        near(attention.compute(q[order], k, v), whole[order])

    def test_near_ties_do_not_depend_on_the_batch(self):
        # Experts with the same router weights tie in exact arithmetic, whatever the order of
        # summation; the others then get nothing.
        attention = mixture(("standard",) * 6, count=3)
        router = attention.parameters()["router.weight"]
        router[...] = router[0]
        q, k, v = arrays(301, 5, seed=4)
        attention.compute(q, k, v)
        for row in q[:20]:
            attention.compute(row, k, v)
        assert attention.routing_stats.routings.tolist() == [321] * 3 + [0] * 3

    @given(st.data())
    def test_any_problem(self, data):
        experts = data.draw(st.integers(1, 6))
        kinds = st.sampled_from(("standard", "hyperbolic", "linear"))
        types = data.draw(st.lists(kinds, min_size=experts, max_size=experts))
        attention = mixture(types, count=data.draw(st.integers(1, experts)))
        m, n = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
        q, k, v = arrays(m, n, seed=data.draw(st.integers(0, 99)), dtype="float64")
        mask = None
        if data.draw(st.booleans()):
            shape = (n,) if "linear" in types else (m, n)
            size = int(np.prod(shape))
            mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
            mask = np.array(mask).reshape(shape)
        limit = None
        training = data.draw(st.booleans())
        if training:
            limit = reference_moe.capacity(1.25, m, attention.top_k, experts)
        output, weights = attention.compute(
            q, k, v, mask=mask, training=training, return_weights=True
        )
        wanted, wanted_weights, _, _ = expected(attention, q, k, v, mask, limit)
        near(output, wanted, "float64")
        near(weights, wanted_weights, "float64")

    @pytest.mark.parametrize(
        ("kind", "single"),
        [
            ("standard", DotProductAttention(DIM)),
            ("hyperbolic", HyperbolicAttention(DIM)),
            ("linear", LinearAttention(DIM, 2 * DIM)),
        ],
    )
    def test_experts_are_the_classes_of_their_names(self, kind, single):
        attention = mixture((kind,), count=1)
        p = attention.parameters()
        for scale in (1, 10):
            q, k, v = (scale * x for x in arrays(30, 20))
            query, keys = (
                x @ p[f"experts.0.{role}.weight"].T for x, role in ((q, "query"), (k, "key"))
            )
            near(attention.compute(q, k, v), single.compute(query, keys, v))

    def test_lists_and_mixed_dtypes(self):
        attention = mixture()
        q, k, v = arrays(3, 9)
        wanted = attention.compute(q, k, v)
        near(attention.compute(q.tolist(), list(k), v.tolist()), wanted)
        near(attention.compute(q, k.astype(np.float64), v), wanted)
        assert attention.compute(q, k.astype(np.float64), v).dtype == np.float32

    def test_strided_and_read_only(self):
        attention = mixture()
        q, k, v = arrays(5, 9, batch=(3,))
        wanted = attention.compute(q, k, v)
        wide = np.zeros((9, 3, 2 * DIM), np.float32)
        wide[..., :DIM] = k.swapaxes(0, 1)
        keys = wide.swapaxes(0, 1)[..., :DIM]
        keys.flags.writeable = False
        near(attention.compute(np.asfortranarray(q), keys, v[:, ::-1][:, ::-1]), wanted)

    def test_float64_parameters(self):
        attention = mixture(dtype="float64")
        q, k, v = arrays(5, 9)
        output = attention.compute(q, k, v)
        assert output.dtype == np.float32
        near(output, expected(attention, q, k, v)[0], "float32")

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        attention = mixture()
        for m in (5, 40):
            q, k, v = (x.astype(ml_dtypes.bfloat16) for x in arrays(m, 17))
            output = attention.compute(q, k, v)
            assert output.dtype == ml_dtypes.bfloat16
            wanted = expected(attention, *(x.astype(np.float64) for x in (q, k, v)))[0]
            np.testing.assert_allclose(output.astype(float), wanted, atol=2e-2)

    def test_out(self):
        attention = mixture()
        q, k, v = arrays(9, 9)
        wanted = attention.compute(q, k, v)
        out = np.empty((9, 2 * DIM), np.float32)[:, ::2]
        assert attention.compute(q, k, v, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        assert attention.compute(q, k, v, out=q) is q
        np.testing.assert_array_equal(q, wanted)

    def test_async(self):
        attention = mixture()
        q, k, v = arrays(9, 9)
        wanted = attention.compute(q, k, v, training=True)
        got = asyncio.run(attention.compute_async(q, k, v, training=True))
        np.testing.assert_array_equal(got, wanted)

    def test_threads_give_the_same_bits(self, backend):
        attention = MoEAttention(dim=96, num_experts=6, top_k=2)
        rng = np.random.default_rng(0)
        q, k = (rng.standard_normal((n, 96), dtype=np.float32) for n in (300, 700))
        with ruvector.num_threads(1):
            one = attention.compute(q, k, k)
        with ruvector.num_threads(3):
            three = attention.compute(q, k, k)
        if backend[0] == "native":
            np.testing.assert_array_equal(three, one)
        else:
            near(three, one)


class TestMasks:
    @pytest.mark.parametrize("types", [TYPES["standard"], TYPES["hyperbolic"]])
    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_of_queries(self, types, batch):
        attention = mixture(types)
        q, k, v = arrays(8, 17, batch=batch)
        rng = np.random.default_rng(1)
        bias = rng.standard_normal((8, 17)).astype(np.float32)
        bias[:, 3] = -np.inf
        masks = [rng.random((8, 17)) < 0.6, bias]
        if batch:
            masks += [rng.random((3, 8, 17)) < 0.6, rng.random((3, 1, 17)) < 0.6]
        for mask in masks:
            output, weights = attention.compute(q, k, v, mask=mask, return_weights=True)
            for i in np.ndindex(batch):
                here = mask[i] if mask.ndim == 3 else mask
                wanted, wanted_weights, _, _ = expected(attention, q[i], k[i], v[i], here)
                near(output[i], wanted)
                near(weights[i], wanted_weights)
            near(attention.compute_with_mask(q, k, v, mask), output)
        if batch:
            near(
                attention.compute(q, k[0], v[0], mask=masks[2])[1],
                expected(attention, q[1], k[0], v[0], masks[2][1])[0],
            )

    @every_type
    @pytest.mark.parametrize("batch", [(), (3,)])
    def test_of_keys(self, types, batch):
        attention = mixture(types)
        q, k, v = arrays(8, 17, batch=batch)
        rng = np.random.default_rng(1)
        bias = np.where(rng.random(17) < 0.7, rng.standard_normal(17), -np.inf)
        for mask in (rng.random(17) < 0.6, bias.astype(np.float32)):
            output, weights = attention.compute(q, k, v, mask=mask, return_weights=True)
            for i in np.ndindex(batch):
                wanted, wanted_weights, _, _ = expected(attention, q[i], k[i], v[i], mask)
                near(output[i], wanted)
                near(weights[i], wanted_weights)

    def test_of_queries_with_a_linear_expert(self):
        q, k, v = arrays(8, 17)
        for shape in ((8, 17), (1, 17)):
            with pytest.raises(
                InvalidMaskError,
                match=rf"mask must have shape \(17,\), the same keys for every query, where "
                rf"there is a linear expert, got shape {re.escape(str(shape))}",
            ):
                mixture().compute(q, k, v, mask=np.ones(shape, bool))

    @every_type
    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_what_is_hidden_does_not_leak(self, types, poison):
        attention = mixture(types)
        for m in (1, 20):
            q, k, v = arrays(m, 17)
            mask = np.arange(17) % 2 == 0
            clean = attention.compute(q, k, v, mask=mask)
            k[1::2], v[1::2] = poison, poison
            near(attention.compute(q, k, v, mask=mask), clean)
            assert not attention.compute(q, k, v, mask=np.zeros(17, bool)).any()

    @every_type
    def test_nan_stays_in_its_row(self, types):
        attention = mixture(types)
        q, k, v = arrays(20, 17)
        clean = attention.compute(q, k, v)
        q[7, 3] = np.nan
        got = attention.compute(q, k, v)
        assert np.isnan(got[7]).all()
        rest = np.arange(20) != 7
        near(got[rest], clean[rest])

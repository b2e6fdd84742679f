"""GraphRoPEAttention against the float64 reference: positions, symmetries, errors."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rope_cases import CONFIGS, TOLERANCES, arrays, every_config, expected, near, positions

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    GraphRoPEAttention,
    InvalidConfigError,
    MultiHeadAttention,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestAttention:
    @every_config
    @pytest.mark.parametrize("dtype", TOLERANCES)
    @pytest.mark.parametrize("m", [1, 5, 40])
    def test_against_the_reference(self, config, dtype, m):
        attention = GraphRoPEAttention(config)
        for n in (1, 30, 70):
            q, k, v = arrays(config, m, n, dtype)
            places = positions(config, m, n)
            output, lse, weights = attention.compute_with_positions(
                q, k, v, *places, return_lse=True, return_weights=True
            )
            wanted, wanted_lse, wanted_weights = expected(config, q, k, v, places)
            if config.num_heads == 1:
                wanted_lse, wanted_weights = wanted_lse[:, 0], wanted_weights[0]
            assert output.dtype == q.dtype
            near(output, wanted, dtype)
            exact = "float32" if dtype == "float16" else dtype
            near(lse, wanted_lse, exact)
            near(weights, wanted_weights, exact)

    @every_config
    def test_without_positions(self, config):
        attention = GraphRoPEAttention(config)
        for m in (1, 20):
            q, k, v = arrays(config, m, 30)
            places = np.zeros(m, int), np.arange(30)
            near(attention.compute(q, k, v), expected(config, q, k, v, places)[0])
        near(attention.compute(q[3], k, v), expected(config, q, k, v, places)[0][3])

    @every_config
    def test_shapes(self, config):
        attention, heads = GraphRoPEAttention(config), config.num_heads
        by_heads = (heads,) if heads > 1 else ()
        for m, batch, lead in ((None, (), ()), (4, (), (4,)), (4, (3,), (3, 4))):
            q, k, v = arrays(config, m, 9, batch=batch)
            output, lse, weights = attention.compute_with_positions(
                q, k, v, 5, np.arange(9), return_lse=True, return_weights=True
            )
            assert output.shape == (*lead, config.dim)
            assert np.shape(lse) == (*lead, *by_heads)
            assert weights.shape == (*lead[:-1], *by_heads, *lead[-1:], 9)
        q, k, v = arrays(config, 0, 9)
        assert attention.compute(q, k, v).shape == (0, config.dim)

    @every_config
    def test_a_batch_with_positions_of_its_own(self, config):
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 4, 9, batch=(3,))
        own, keys = positions(config, (3, 4), (3, 9))
        got = attention.compute_with_positions(q, k, v, own, keys)
        shared = attention.compute_with_positions(q, k[0], v[0], own[0], keys)
        for b in range(3):
            near(got[b], expected(config, q[b], k[b], v[b], (own[b], keys[b]))[0])
            near(shared[b], expected(config, q[b], k[0], v[0], (own[0], keys[b]))[0])

    @every_config
    @pytest.mark.parametrize("m", [1, 20])
    def test_masks(self, config, m):
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, m, 17)
        places = positions(config, m, 17)
        rng = np.random.default_rng(1)
        bias = rng.standard_normal((m, 17)).astype(np.float32)
        bias[:, 3] = -np.inf
        for mask in (rng.random(17) < 0.6, rng.random((m, 17)) < 0.6, bias):
            output, lse = attention.compute_with_positions(
                q, k, v, *places, mask=mask, return_lse=True
            )
            wanted, wanted_lse, _ = expected(config, q, k, v, places, mask)
            near(output, wanted)
            near(lse, wanted_lse[:, 0] if config.num_heads == 1 else wanted_lse)
        own = np.zeros(m, int), np.arange(17)
        wanted = expected(config, q, k, v, own, mask)[0]
        near(attention.compute_with_mask(q, k, v, mask), wanted)

    @pytest.mark.parametrize("m", [1, 20])
    def test_what_is_hidden_does_not_leak(self, m):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, m, 17)
        mask = np.arange(17) != 3
        clean = attention.compute(q, k, v, mask=mask)
        k[3], v[3] = np.nan, np.inf
        near(attention.compute(q, k, v, mask=mask), clean)
        nothing, lse = attention.compute(q, k, v, mask=np.zeros(17, bool), return_lse=True)
        assert (nothing == 0).all()
        assert (lse == -np.inf).all()

    def test_states_merge(self):
        config = CONFIGS[2]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 3, 40)
        places = positions(config, 3, 40)
        whole = attention.compute_with_positions(q, k, v, *places)
        parts = [
            attention.compute_with_positions(
                q, k[i:j], v[i:j], places[0], places[1][i:j], return_lse=True
            )
            for i, j in ((0, 13), (13, 40))
        ]
        outputs = [part[0].reshape(3, 2, -1) for part in parts]
        merged, _ = ruvector.merge_states(outputs, [part[1] for part in parts])
        near(merged.reshape(3, -1), whole)

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        for m in (1, 20):
            q, k, v = arrays(config, m, 17, ml_dtypes.bfloat16)
            places = positions(config, m, 17)
            got = attention.compute_with_positions(q, k, v, *places)
            assert got.dtype == ml_dtypes.bfloat16
            wanted = expected(config, q, k, v, places)[0]
            np.testing.assert_allclose(got.astype(float), wanted, rtol=1e-2, atol=2e-2)

    def test_out_and_async(self):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 4, 9)
        wanted = attention.compute(q, k, v)
        out = np.empty_like(wanted)
        assert attention.compute(q, k, v, out=out) is out
        near(out, wanted)
        near(asyncio.run(attention.compute_async(q, k, v)), wanted)
        assert attention.compute(q, k, v, out=q) is q
        near(q, wanted)

    def test_plain_calls_of_changing_lengths(self):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, None, 40)
        wide = np.concatenate([v, v], axis=1)
        for n in (3, 40, 7, 7, 1):
            own = np.zeros(1, int), np.arange(n)
            wanted = expected(config, q[None], k[:n], wide[:n], own)[0][0]
            near(attention.compute(q, k[:n].copy(), wide[:n].copy()), wanted)
        assert attention.compute(q, k, v[:, :0].copy()).shape == (0,)

    def test_position_0_everywhere_is_plain_attention(self):
        q, k, v = arrays(CONFIGS[2], 5, 30)
        got = GraphRoPEAttention(CONFIGS[2]).compute_with_positions(
            q, k, v, 0, np.zeros(30, int)
        )
        near(got, MultiHeadAttention(16, 2).compute(q, k, v))

    def test_memory_that_is_not_contiguous(self):
        config = CONFIGS[2]
        q, k, v = arrays(config, 5, 30)
        wanted = GraphRoPEAttention(config).compute(q, k, v)
        wide = np.zeros((60, 20), np.float32)
        wide[::-2, 1:17] = k
        near(GraphRoPEAttention(config).compute(q[::-1], wide[::-2, 1:17], v)[::-1], wanted)


@given(
    config=st.sampled_from(CONFIGS),
    seed=st.integers(0, 2**32 - 1),
    shift=st.integers(-20, 20),
    m=st.sampled_from([1, 9]),
)
def test_only_relative_positions_matter(config, seed, shift, m):
    q, k, v = arrays(config, m, 17, "float64", seed=seed)
    rng = np.random.default_rng(seed)
    places = rng.integers(20, 44, m), rng.integers(20, 44, 17)
    attention = GraphRoPEAttention(config)
    results = [
        attention.compute_with_positions(q, k, v, *(p + offset for p in places))
        for offset in (0, shift)
    ]
    np.testing.assert_allclose(*results, rtol=1e-10, atol=1e-10)


class TestUpstream:
    RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())

    @pytest.mark.parametrize("op", ["graph_rope", "apply_rotary", "distance_to_position"])
    def test_equals(self, op):
        cases = [case for case in self.RECORDED["cases"] if case["op"] == op]
        assert len(cases) == (8 if op == "distance_to_position" else 4)
        for case in cases:
            inputs, params = case["inputs"], case["params"]
            if op == "graph_rope":
                got = GraphRoPEAttention(**params).compute_with_positions(**inputs)
            elif op == "apply_rotary":
                got = GraphRoPEAttention(**params).apply_rotary(
                    inputs["vector"], inputs["position"]
                )
            else:
                got = GraphRoPEAttention.distance_to_position(**inputs, **params)
                assert got == case["output"]
                assert type(got) is int
            np.testing.assert_allclose(got, case["output"], rtol=2e-5, atol=4e-6)


class TestErrors:
    attention = GraphRoPEAttention.simple(8, 16)
    arrays = arrays(CONFIGS[0], 3, 5)

    @pytest.mark.parametrize(
        ("places", "error", "message"),
        [
            ((16, range(5)), InvalidConfigError, "query_position must be between 0 and 15 "),
            ((-1, range(5)), InvalidConfigError, "(max_position - 1), got -1"),
            ((0, [0, 1, 2, 3, 99]), InvalidConfigError, "key_positions must be between 0"),
            ((0, [0, 1, -2, 3, 4]), InvalidConfigError, "got -2"),
            (([1, 2], range(5)), DimensionMismatchError, "shape () or (3,), got (2,)"),
            ((0, range(4)), DimensionMismatchError, "key_positions must have shape (5,), got"),
            ((0, 1), DimensionMismatchError, "key_positions must have shape (5,), got ()"),
            ((0.5, range(5)), TypeError, "query_position must hold integers"),
            ((0, [0.0] * 5), TypeError, "key_positions must hold integers"),
        ],
        ids=str,
    )
    def test_positions(self, places, error, message):
        places = places[0], list(places[1]) if isinstance(places[1], range) else places[1]
        with pytest.raises(error, match=re.escape(message)):
            self.attention.compute_with_positions(*self.arrays, *places)

    def test_more_keys_than_positions(self):
        q, k, v = arrays(CONFIGS[0], 3, 17)
        with pytest.raises(InvalidConfigError, match=r"keys must be at most 16 .* got 17"):
            self.attention.compute(q, k, v)
        assert self.attention.compute(q, k[1:], v[1:]).shape == (3, 8)
        assert self.attention.compute_with_positions(q, k, v, 3, [2] * 17).shape == (3, 8)

    def test_shapes(self):
        q, k, v = self.arrays
        with pytest.raises(EmptyInputError):
            self.attention.compute(q, k[:0], v[:0])
        with pytest.raises(DimensionMismatchError, match="query must have shape"):
            self.attention.compute(q[:, :6], k, v)
        with pytest.raises(
            DimensionMismatchError, match=re.escape("x must have shape (..., 8)")
        ):
            self.attention.apply_rotary(q[:, :6], 0)
        with pytest.raises(DimensionMismatchError, match="positions must broadcast to"):
            self.attention.apply_rotary(q, [0, 1])
        with pytest.raises(InvalidConfigError, match="positions must be between 0 and 15"):
            self.attention.apply_rotary(q, 16)
        heads = GraphRoPEAttention(dim=8, max_position=16, num_heads=2)
        with pytest.raises(DimensionMismatchError, match="divides into 2 heads"):
            heads.compute(q, k, v[:, :5])

    def test_an_out_that_raised_is_untouched(self):
        out = np.full((3, 8), 5, np.float32)
        with pytest.raises(InvalidConfigError):
            self.attention.compute_with_positions(*self.arrays, 16, [0] * 5, out=out)
        assert (out == 5).all()

"""GraphRoPEAttention against the float64 reference: positions, scalings, layouts, errors."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import reference_rotary
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    GraphRoPEAttention,
    InvalidConfigError,
    MultiHeadAttention,
    RoPEConfig,
)

pytestmark = pytest.mark.usefixtures("backend")

TOLERANCES = {"float32": 2e-5, "float64": 1e-10, "float16": 3e-3}
CONFIGS = [
    RoPEConfig(8, 64),
    RoPEConfig(12, 64, num_heads=3, layout="interleaved", base=100.0),
    RoPEConfig(16, 64, num_heads=2, scaling_factor=4.0),
    RoPEConfig(16, 64, num_heads=2, scaling_factor=2.5, scaling="ntk"),
    RoPEConfig(48, 64, num_heads=2, scaling_factor=4, scaling="yarn", layout="interleaved"),
    RoPEConfig(
        32,
        64,
        scaling_factor=8,
        scaling="yarn",
        original_max_position=500,
        beta_fast=16,
        beta_slow=2,
        base=500.0,
    ),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.scaling}-{c.dim}")


def speeds(config):
    """Give angles and amplitude of a configuration by the formulas."""
    return reference_rotary.frequencies(
        config.dim // config.num_heads,
        config.base,
        config.scaling,
        config.scaling_factor,
        config.original_max_position or config.max_position / config.scaling_factor,
        config.beta_fast,
        config.beta_slow,
    )


def by_head(x, config):
    return np.asarray(x, np.float64).reshape(len(x), config.num_heads, -1).swapaxes(0, 1)[None]


def turned(x, positions, config):
    """Turn every head of every row."""
    neighbours = config.layout == "interleaved"
    rows = [
        [reference_rotary.turn(head, p, *speeds(config), neighbours) for head in vector]
        for vector, p in zip(by_head(x, config)[0].swapaxes(0, 1), positions, strict=True)
    ]
    return np.array(rows).reshape(len(x), config.dim)


def expected(config, query, keys, values, places, mask=None):
    """Compute (output, lse, weights), the latter by heads."""
    q, k = (turned(x, p, config) for x, p in zip((query, keys), places, strict=True))
    spec = {}
    if mask is not None:
        whole = np.broadcast_to(mask, (1, config.num_heads, len(query), len(keys)))
        spec["mask" if whole.dtype == bool else "bias"] = whole
    scale = (config.dim // config.num_heads) ** -0.5
    rows = (by_head(x, config) for x in (q, k, values))
    out, lse, weights = reference.attention(*rows, scale=scale, **spec)
    return out[0].swapaxes(0, 1).reshape(len(query), -1), lse[0].T, weights[0]


def arrays(config, m, n, dtype="float32", batch=(), seed=0):
    rng = np.random.default_rng(seed)
    query = () if m is None else (m,)
    shapes = (*batch, *query, config.dim), (*batch, n, config.dim), (*batch, n, config.dim)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def positions(config, *shapes, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.max_position, shape) for shape in shapes]


def near(got, wanted, dtype="float32"):
    bound = TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)


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


class TestApplyRotary:
    @every_config
    @pytest.mark.parametrize("dtype", TOLERANCES)
    def test_against_the_reference(self, config, dtype):
        x = arrays(config, 30, 1, dtype)[0]
        (places,) = positions(config, 30)
        attention = GraphRoPEAttention(config)
        got = attention.apply_rotary(x, places)
        assert got.dtype == x.dtype
        wanted = turned(x, places, config)
        near(got, wanted, dtype)
        near(attention.apply_rotary(x[4], places[4]), wanted[4], dtype)
        cube = x.reshape(5, 6, -1)
        near(attention.apply_rotary(cube, places.reshape(5, 6)).reshape(30, -1), wanted, dtype)
        same = turned(x, [7] * 30, config).reshape(5, 6, -1)
        near(attention.apply_rotary(cube, 7), same, dtype)
        assert attention.apply_rotary(x[:0], places[:0]).shape == (0, config.dim)

    def test_lists_and_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        attention = GraphRoPEAttention.simple(4, 8)
        near(attention.apply_rotary([1, 0, 0, 0], 0), [1, 0, 0, 0])
        got = attention.apply_rotary(np.ones(4, ml_dtypes.bfloat16), 1)
        assert got.dtype == ml_dtypes.bfloat16
        wanted = attention.apply_rotary(np.ones(4), 1)
        np.testing.assert_allclose(got.astype(float), wanted, rtol=1e-2)

    @every_config
    def test_dot_products_are_those_of_attention(self, config):
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 5, 30)
        places = positions(config, 5, 30)
        a, b = (attention.apply_rotary(x, p) for x, p in zip((q, k), places, strict=True))
        wanted = MultiHeadAttention(config.dim, config.num_heads).compute(a, b, v)
        near(attention.compute_with_positions(q, k, v, *places), wanted)

    def test_positions_that_grow(self):
        # The table of angles is made as far as positions go.
        attention = GraphRoPEAttention.simple(4, 1_000_000)
        x = np.array([1.0, 0.5, -1.0, 2.0])
        for position in (0, 3, 1, 1000, 999_999):
            wanted = reference_rotary.turn(x, position, *reference_rotary.frequencies(4))
            np.testing.assert_allclose(attention.apply_rotary(x, position), wanted, atol=1e-9)


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    config = RoPEConfig(128, 8192, scaling="yarn", scaling_factor=4, original_max_position=2048)
    plain, _ = reference_rotary.frequencies(128)
    angles = GraphRoPEAttention(config)._turns.angles
    np.testing.assert_allclose(angles, speeds(config)[0], rtol=1e-14)
    np.testing.assert_allclose(angles[:17], plain[:17], rtol=1e-14)
    np.testing.assert_allclose(angles[41:], np.array(plain[41:]) / 4, rtol=1e-14)
    assert GraphRoPEAttention(config)._turns.amplitude == pytest.approx(1.1386294361119891)


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


class TestDistanceToPosition:
    def test_is_the_logarithm_rounded_up(self):
        distances = np.arange(1, 5000)
        got = GraphRoPEAttention.distance_to_position(distances, 100)
        wanted = np.where(distances <= 8, distances, 8 + np.ceil(np.log2(distances)))
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == np.int64

    def test_never_above_the_limit(self):
        for limit in (0, 3, 8, 12, 15):
            got = GraphRoPEAttention.distance_to_position(np.arange(3000), limit)
            assert got.max() == limit
            np.testing.assert_array_equal(got[:9], np.minimum(np.arange(9), limit))
            assert (np.diff(got) >= 0).all()

    def test_errors(self):
        with pytest.raises(
            InvalidConfigError, match=r"distance must not be negative .* got -1"
        ):
            GraphRoPEAttention.distance_to_position([3, -1], 20)
        with pytest.raises(InvalidConfigError, match="max_distance must be an integer of at"):
            GraphRoPEAttention.distance_to_position(3, -1)
        with pytest.raises(TypeError, match="distance must hold integers"):
            GraphRoPEAttention.distance_to_position(0.5, 20)


class TestConfig:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dim": 7}, "dim must divide into num_heads heads of an even width, got dim=7"),
            ({"num_heads": 3}, "got dim=8 and num_heads=3"),
            ({"dim": 6, "num_heads": 2}, "got dim=6 and num_heads=2"),
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
            ({"max_position": 0}, "max_position must be an integer of at least 1"),
            ({"max_position": 2.5}, "max_position must be an integer"),
            ({"base": 1.0}, "base must be above 1, got 1.0"),
            ({"base": float("nan")}, "base must be a finite number"),
            ({"scaling_factor": 0}, "scaling_factor must be a positive finite number"),
            ({"scaling": "dynamic"}, "scaling must be 'linear' or 'ntk' or 'yarn'"),
            ({"layout": "meta"}, "layout must be 'half' or 'interleaved'"),
            ({"scaling": "ntk", "dim": 2}, "scaling must not be 'ntk' for heads of width 2"),
            ({"original_max_position": 0}, "original_max_position must be an integer"),
            ({"beta_fast": 1, "beta_slow": 2}, "beta_fast must be at least beta_slow"),
            ({"beta_slow": 0}, "beta_slow must be a positive finite number"),
        ],
        ids=str,
    )
    def test_errors(self, fields, message):
        with pytest.raises(InvalidConfigError, match=re.escape(message)):
            RoPEConfig(**{"dim": 8, "max_position": 4, **fields})
        with pytest.raises(InvalidConfigError):
            GraphRoPEAttention(**{"dim": 8, "max_position": 4, **fields})

    def test_config_or_fields(self):
        with pytest.raises(InvalidConfigError, match="config must not come with its fields"):
            GraphRoPEAttention(CONFIGS[0], dim=8)
        with pytest.raises(InvalidConfigError, match="config must be a RoPEConfig, got 8"):
            GraphRoPEAttention(8)

    @every_config
    def test_is_a_value(self, config):
        attention = GraphRoPEAttention(config)
        for other in (
            pickle.loads(pickle.dumps(attention)),
            copy.deepcopy(attention),
            eval(repr(attention), {"GraphRoPEAttention": GraphRoPEAttention}),
        ):
            assert other == attention
            assert hash(other) == hash(attention)
        assert pickle.loads(pickle.dumps(config)) == config
        assert attention != GraphRoPEAttention.simple(config.dim, 65)
        for name in RoPEConfig.__slots__:
            assert getattr(attention, name) == getattr(config, name)
        assert attention.head_dim == config.head_dim == config.dim // config.num_heads

    def test_a_used_object_pickles_small(self):
        attention = GraphRoPEAttention.simple(64, 100_000)
        attention.apply_rotary(np.zeros(64), 99_999)
        assert len(pickle.dumps(attention)) < 500

    def test_simple(self):
        assert GraphRoPEAttention.simple(8, 64) == GraphRoPEAttention(CONFIGS[0])
        with pytest.raises(InvalidConfigError, match="dim=9"):
            GraphRoPEAttention.simple(9, 64)


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


class TestGradients:
    @every_config
    @pytest.mark.parametrize("batch", [(), (2,)])
    def test_gradcheck(self, config, batch):
        attention = GraphRoPEAttention(config)
        m, n = 3, 6
        query, keys, values = arrays(config, m, n, "float64", batch)
        own, places = positions(config, (*batch, m), (*batch, n))
        bias = np.random.default_rng(2).standard_normal((m, n))
        _check_gradients(attention, (query, keys, values, bias), own, places)

    def test_one_memory_that_a_batch_shares(self):
        config = CONFIGS[1]
        query, _, _ = arrays(config, 3, 6, "float64", (2,))
        _, keys, values = arrays(config, 3, 6, "float64")
        bias = np.zeros((3, 6))
        for shape in ((6,), (2, 6)):
            own, places = positions(config, (2, 3), shape)
            case = query, keys, values, bias
            _check_gradients(GraphRoPEAttention(config), case, own, places)

    def test_without_positions(self):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        q, k, v = arrays(config, 3, 6)
        one = attention.compute_with_gradients(q, k, v, q)
        two = attention.compute_with_gradients(
            q, k, v, q, query_position=0, key_positions=np.arange(6)
        )
        near(one[0], attention.compute(q, k, v))
        for name in ("query", "keys", "values"):
            near(one[1][name], two[1][name])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_narrow_types(self, dtype):
        config = CONFIGS[1]
        attention = GraphRoPEAttention(config)
        wide = arrays(config, 20, 30, "float64")
        narrow = [x.astype(dtype) for x in wide]
        own, keys = positions(config, 20, 30)
        places = {"query_position": own, "key_positions": keys}
        _, wanted = attention.compute_with_gradients(*wide, wide[0], **places)
        _, got = attention.compute_with_gradients(*narrow, narrow[0], **places)
        for name in ("query", "keys", "values"):
            assert got[name].dtype == dtype
            bound = 1e-4 if dtype == "float32" else 2e-2
            np.testing.assert_allclose(got[name].astype(float), wanted[name], atol=bound)


def _check_gradients(attention, case, own, places):
    """Compare every gradient with differences, through output and log-sum-exp."""
    rng = np.random.default_rng(3)
    query, keys, values, bias = case

    def run(query, keys, values, bias):
        return attention.compute_with_positions(
            query, keys, values, own, places, mask=bias, return_lse=True
        )

    output, lse = run(*case)
    outer, outer_lse = rng.standard_normal(output.shape), rng.standard_normal(np.shape(lse))
    _, gradients = attention.compute_with_gradients(
        query, keys, values, outer, grad_lse=outer_lse, query_position=own,
        key_positions=places, mask=bias,
    )  # fmt: skip
    for at, name in enumerate(("query", "keys", "values", "mask")):
        direction = rng.standard_normal(case[at].shape)
        sums = []
        for step in (1e-6, -1e-6):
            moved = list(case)
            moved[at] = case[at] + step * direction
            result = run(*moved)
            sums.append((result[0] * outer).sum() + (result[1] * outer_lse).sum())
        wanted = (sums[0] - sums[1]) / 2e-6
        assert gradients[name].shape == case[at].shape
        np.testing.assert_allclose(
            (gradients[name] * direction).sum(), wanted, rtol=1e-6, atol=1e-7
        )

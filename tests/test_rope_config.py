"""Rotary positions themselves: turned rows, scalings, configurations."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
import reference_rotary
from rope_cases import (
    CONFIGS,
    TOLERANCES,
    arrays,
    every_config,
    near,
    positions,
    speeds,
    turned,
)

from ruvector import (
    GraphRoPEAttention,
    InvalidConfigError,
    MultiHeadAttention,
    RoPEConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


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

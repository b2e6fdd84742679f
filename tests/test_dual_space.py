"""DualSpaceAttention against the float64 reference, its parts, its state, its parameter."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import reference_ball
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import (
    DimensionMismatchError,
    DualSpaceAttention,
    DualSpaceConfig,
    EmptyInputError,
    InvalidConfigError,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")

TOLERANCES = {"float32": 3e-5, "float64": 1e-9, "float16": 4e-3}
CONFIGS = [
    DualSpaceConfig(8, 4, 1, 1.0),
    DualSpaceConfig(12, 6, 3, -0.5, fusion_weight=0.3, temperature=0.7),
    DualSpaceConfig(4, 8, 2, 2.0, fusion_weight=0.8, learn_fusion=False),
    DualSpaceConfig(4, 8, 2, 1.0, fusion_weight=0.0, learn_fusion=False),
    DualSpaceConfig(4, 8, 2, 1.0, fusion_weight=1.0, learn_fusion=False),
]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=["one head", "three heads", "fixed", "weight 0", "weight 1"]
)


def arrays(config, m, n, seed=0, dtype="float32", batch=()):
    rng = np.random.default_rng(seed)
    dim = config.euclidean_dim + config.hyperbolic_dim
    query = () if m is None else (m,)
    shapes = (*batch, *query, dim), (*batch, n, dim), (*batch, n, dim)
    return tuple((0.8 * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def expected(config, query, keys, values, mask=None):
    """Compute (output, lse, weights), the latter by heads, head by head in float64."""
    width, heads = config.euclidean_dim, config.num_heads
    flat, curved, lses, weights = [], [], [], []
    w = config.fusion_weight
    for h in range(heads):
        parts = []
        for x in (query, keys, values):
            x = x.astype(np.float64)
            parts.append(np.split(x[:, :width], heads, axis=1)[h][None, None])
            parts.append(np.split(x[:, width:], heads, axis=1)[h][None, None])
        spec = {}
        if mask is not None:
            whole = np.broadcast_to(mask, (1, 1, len(query), len(keys)))
            spec["mask" if whole.dtype == bool else "bias"] = whole
        out, state, lse, weight = reference_ball.attention(
            *parts[1::2],
            curvature=config.curvature,
            distance_scale=w / config.temperature,
            tangent=True,
            query=parts[0],
            key=parts[2],
            value=parts[4],
            scale=(1 - w) / config.temperature * (width // heads) ** -0.5,
            **spec,
        )
        flat.append(out[0, 0])
        points = [reference_ball.midpoint(row, config.curvature) for row in state[0, 0]]
        origin = np.zeros(len(points[0]))
        curved.append([reference_ball.log_map(origin, p, config.curvature) for p in points])
        lses.append(lse[0, 0])
        weights.append(weight[0, 0])
    return np.concatenate([*flat, *curved], axis=1), np.stack(lses, axis=1), np.stack(weights)


def near(got, wanted, dtype="float32"):
    bound = TOLERANCES[dtype]
    assert np.shape(got) == np.shape(wanted)
    np.testing.assert_allclose(np.asarray(got, np.float64), wanted, rtol=bound, atol=bound)


class TestCompute:
    @every_config
    @pytest.mark.parametrize("dtype", TOLERANCES)
    @pytest.mark.parametrize("m", [1, 5, 20])
    def test_against_the_reference(self, config, dtype, m):
        attention = DualSpaceAttention(config)
        for n in (1, 17):
            q, k, v = arrays(config, m, n, dtype=dtype)
            output, lse, weights = attention.compute(
                q, k, v, return_lse=True, return_weights=True
            )
            wanted, wanted_lse, wanted_weights = expected(config, q, k, v)
            if config.num_heads == 1:
                wanted_lse, wanted_weights = wanted_lse[:, 0], wanted_weights[0]
            assert output.dtype == q.dtype
            assert lse.dtype == weights.dtype == np.result_type(q, np.float32)
            near(output, wanted, dtype)
            exact = "float32" if dtype == "float16" else dtype
            near(lse, wanted_lse, exact)
            near(weights, wanted_weights, exact)

    @every_config
    def test_shapes(self, config):
        attention = DualSpaceAttention(config)
        dim, heads = attention.dim, config.num_heads
        by_head = (heads,) if heads > 1 else ()
        for m, batch, lead in ((None, (), ()), (4, (), (4,)), (4, (3,), (3, 4))):
            q, k, v = arrays(config, m, 9, batch=batch)
            output, lse, weights = attention.compute(
                q, k, v, return_lse=True, return_weights=True
            )
            assert output.shape == (*lead, dim)
            assert np.shape(lse) == (*lead, *by_head)
            assert weights.shape == (*lead[:-1], *by_head, *lead[-1:], 9)
        q, k, v = arrays(config, 4, 9, batch=(3,))
        near(attention.compute(q, k, v)[1], attention.compute(q[1], k[1], v[1]))
        near(attention.compute(q, k[0], v[0])[2], attention.compute(q[2], k[0], v[0]))
        none = attention.compute(q[0, :0], k[0], v[0], return_lse=True)
        assert none[0].shape == (0, dim)

    @every_config
    @pytest.mark.parametrize("m", [1, 20])
    def test_masks(self, config, m):
        attention = DualSpaceAttention(config)
        q, k, v = arrays(config, m, 17)
        rng = np.random.default_rng(1)
        bias = rng.standard_normal((m, 17)).astype(np.float32)
        bias[:, 3] = -np.inf
        for mask in (rng.random(17) < 0.6, rng.random((m, 17)) < 0.6, bias):
            output, lse = attention.compute(q, k, v, mask=mask, return_lse=True)
            wanted, wanted_lse, _ = expected(config, q, k, v, mask)
            near(output, wanted)
            near(lse, wanted_lse[:, 0] if config.num_heads == 1 else wanted_lse)
            near(attention.compute_with_mask(q, k, v, mask), output)

    @every_config
    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_what_is_hidden_does_not_leak(self, config, poison):
        attention = DualSpaceAttention(config)
        for m in (1, 20):
            q, k, v = arrays(config, m, 17)
            mask = np.ones((m, 17), bool)
            mask[:, 1::2] = False
            mask[0] = False
            clean = attention.compute(q, k, v, mask=mask)
            k[1::2], v[1::2] = poison, poison
            got, lse = attention.compute(q, k, v, mask=mask, return_lse=True)
            near(got, clean)
            assert (got[0] == 0).all()
            assert np.all(lse[0] == -np.inf)

    def test_nan_poisons_its_head_alone(self):
        attention = DualSpaceAttention(CONFIGS[1])
        q, k, v = arrays(CONFIGS[1], 3, 9)
        clean = attention.compute(q, k, v)
        k[5, 4] = np.nan
        got = attention.compute(q, k, v)
        # The second of three heads: columns 4 to 7 of one part, 14 and 15 of the other.
        bad = np.zeros(18, bool)
        bad[[4, 5, 6, 7, 14, 15]] = True
        assert np.isnan(got[:, bad]).all()
        near(got[:, ~bad], clean[:, ~bad])

    def test_out_and_async(self):
        config = CONFIGS[1]
        attention = DualSpaceAttention(config)
        q, k, v = arrays(config, 9, 9)
        wanted = attention.compute(q, k, v)
        out = np.empty((9, 36), np.float32)[:, ::2]
        assert attention.compute(q, k, v, out=out) is out
        np.testing.assert_array_equal(out, wanted)
        np.testing.assert_array_equal(asyncio.run(attention.compute_async(q, k, v)), wanted)
        assert attention.compute(q, k, v, out=q) is q
        np.testing.assert_array_equal(q, wanted)

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        config = CONFIGS[1]
        q, k, v = (x.astype(ml_dtypes.bfloat16) for x in arrays(config, 5, 17))
        output = DualSpaceAttention(config).compute(q, k, v)
        assert output.dtype == ml_dtypes.bfloat16
        wanted, _, _ = expected(config, *(x.astype(np.float64) for x in (q, k, v)))
        np.testing.assert_allclose(output.astype(float), wanted, atol=2e-2)


class TestLimits:
    def test_weight_0_scores_by_dot_products_alone(self):
        config = DualSpaceConfig(8, 4, 2, 1.0, fusion_weight=0, learn_fusion=False)
        q, k, v = arrays(config, 5, 17)
        output, weights = DualSpaceAttention(config).compute(q, k, v, return_weights=True)
        flat, wanted = ruvector.MultiHeadAttention(8, 2).compute(
            q[:, :8], k[:, :8], v[:, :8], return_weights=True
        )
        near(output[:, :8], flat)
        near(weights, wanted)

    def test_weight_1_scores_by_distance_alone(self):
        config = DualSpaceConfig(8, 4, 1, 1.5, fusion_weight=1, learn_fusion=False)
        q, k, v = arrays(config, 5, 17)
        output = DualSpaceAttention(config).compute(q, k, v)
        points = ruvector.HyperbolicAttention(4, 1.5, inputs="tangent").compute(
            *(x[:, 8:] for x in (q, k, v))
        )
        near(output[:, 8:], hyperbolic.logmap0(points, 1.5))

    def test_large_vectors_do_not_pile_up(self):
        config = CONFIGS[0]
        q, k, v = arrays(config, 3, 1, dtype="float64")
        v[:, 8:] *= 5.5 / np.linalg.norm(v[:, 8:])
        output = DualSpaceAttention(config).compute(q, k, v)
        np.testing.assert_allclose(output, np.repeat(v, 3, axis=0), rtol=1e-6)

    def test_a_single_key_gives_its_value(self):
        for config in CONFIGS:
            q, k, v = arrays(config, 3, 1)
            near(DualSpaceAttention(config).compute(q, k, v), np.repeat(v, 3, axis=0))

    @given(st.integers(0, 10_000), st.permutations(range(11)))
    def test_the_order_of_the_keys_does_not_matter(self, seed, order):
        config = CONFIGS[1]
        q, k, v = arrays(config, 3, 11, seed=seed)
        attention = DualSpaceAttention(config)
        near(attention.compute(q, k[order], v[order]), attention.compute(q, k, v))


class TestSpaceContributions:
    @every_config
    def test_parts_of_the_scores(self, config):
        attention = DualSpaceAttention(config)
        q, k, v = arrays(config, 4, 9)
        flat, curved = attention.get_space_contributions(q, k)
        heads, width = config.num_heads, config.euclidean_dim
        assert flat.shape == curved.shape == (heads, 4, 9)
        c = config.curvature
        for h in range(heads):
            e = slice(h * width // heads, (h + 1) * width // heads)
            p = config.hyperbolic_dim
            x = slice(width + h * p // heads, width + (h + 1) * p // heads)
            near(flat[h], q[:, e] @ k[:, e].T / np.sqrt(width // heads))
            near(
                curved[h],
                -hyperbolic.poincare_distance(
                    hyperbolic.expmap0(q[:, None, x], c), hyperbolic.expmap0(k[:, x], c), c
                ),
            )
        w = config.fusion_weight
        scores = ((1 - w) * flat + w * curved) / config.temperature
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        _, got = attention.compute(q, k, v, return_weights=True)
        near(got, weights[0] if heads == 1 else weights)

    def test_shapes_and_dtypes(self):
        config = CONFIGS[1]
        attention = DualSpaceAttention(config)
        for m, batch, shape in (
            (None, (), (3, 9)),
            (4, (), (3, 4, 9)),
            (4, (2,), (2, 3, 4, 9)),
        ):
            for dtype in TOLERANCES:
                q, k, _ = arrays(config, m, 9, batch=batch, dtype=dtype)
                for part in attention.get_space_contributions(q, k):
                    assert part.shape == shape
                    assert part.dtype == (np.float64 if dtype == "float64" else np.float32)

    def test_errors(self):
        attention = DualSpaceAttention(CONFIGS[0])
        with pytest.raises(EmptyInputError, match=r"^keys must hold at least one vector"):
            attention.get_space_contributions(np.zeros(12), np.zeros((0, 12)))
        with pytest.raises(DimensionMismatchError, match=r"^keys must have shape \(n, 12\)"):
            attention.get_space_contributions(np.zeros(12), np.zeros((2, 11)))


class TestState:
    @given(
        st.lists(st.integers(0, 20), max_size=4), st.sampled_from(CONFIGS), st.integers(0, 1000)
    )
    def test_any_split_gives_the_whole(self, cuts, config, seed):
        attention = DualSpaceAttention(config)
        q, k, v = arrays(config, 5, 20, seed=seed)
        ends = [0, *sorted(cuts), 20]
        parts = [attention.compute_state(q, k[a:b], v[a:b]) for a, b in pairwise(ends)]
        state, lse = attention.merge_states(*zip(*parts, strict=True))
        output, whole_lse = attention.compute(q, k, v, return_lse=True)
        near(attention.finalize(state), output)
        near(lse, whole_lse)

    @every_config
    def test_shapes(self, config):
        attention = DualSpaceAttention(config)
        width = attention.dim // config.num_heads + 1
        by_head = (config.num_heads,) if config.num_heads > 1 else ()
        for m, batch, lead in ((None, (), ()), (4, (), (4,)), (4, (3,), (3, 4))):
            for dtype in TOLERANCES:
                q, k, v = arrays(config, m, 9, batch=batch, dtype=dtype)
                state, lse = attention.compute_state(q, k, v)
                assert state.shape == (*lead, *by_head, width)
                assert np.shape(lse) == (*lead, *by_head)
                output = attention.finalize(state)
                near(output, attention.compute(q, k, v).astype(np.float64), "float16")

    def test_errors(self):
        with pytest.raises(
            DimensionMismatchError, match=r"^state must have shape \(\.\.\., 3, 7\), got \(7,\)"
        ):
            DualSpaceAttention(CONFIGS[1]).finalize(np.zeros(7))
        with pytest.raises(
            DimensionMismatchError, match=r"^state must have shape \(\.\.\., 13\), got \(12,\)"
        ):
            DualSpaceAttention(CONFIGS[0]).finalize(np.zeros(12))
        attention = DualSpaceAttention(CONFIGS[0])
        with pytest.raises(DimensionMismatchError, match=r"^values must have the width 12"):
            attention.compute_state(np.zeros(12), np.zeros((2, 12)), np.zeros((2, 11)))


class TestFusion:
    def test_is_the_sigmoid_of_a_parameter(self):
        for weight in (0.01, 0.3, 0.5, 0.999):
            attention = DualSpaceAttention.simple_fused(8, 2, 1.0, weight)
            assert attention.fusion_weight == pytest.approx(weight, rel=1e-12)
            (logit,) = attention.parameters().values()
            assert logit == pytest.approx(np.log(weight / (1 - weight)), abs=1e-12)

    def test_live_view(self):
        attention = DualSpaceAttention.simple_fused(8, 2, 1.0, 0.5)
        q, k, v = arrays(DualSpaceConfig(4, 4, 2, 1.0), 3, 9)
        attention.parameters()["fusion_logit"][...] = -800.0
        assert attention.fusion_weight == 0
        wanted = DualSpaceAttention(
            euclidean_dim=4,
            hyperbolic_dim=4,
            num_heads=2,
            curvature=1.0,
            fusion_weight=0.0,
            learn_fusion=False,
        )
        near(attention.compute(q, k, v), wanted.compute(q, k, v))
        attention.parameters()["fusion_logit"][...] = 800.0
        assert attention.fusion_weight == 1
        attention.parameters()["fusion_logit"][...] = np.nan
        with pytest.raises(InvalidConfigError, match=r"^fusion_logit must be a finite number"):
            attention.compute(q, k, v)

    def test_state_dict(self):
        first = DualSpaceAttention.simple_fused(8, 2, 1.0, 0.2)
        second = DualSpaceAttention.simple_fused(8, 2, 1.0, 0.9)
        second.load_state_dict(first.state_dict())
        assert second.fusion_weight == first.fusion_weight
        fixed = DualSpaceAttention(CONFIGS[2])
        assert fixed.parameters() == fixed.state_dict() == {}
        with pytest.raises(InvalidConfigError, match=r"^state must hold \[\], got"):
            fixed.load_state_dict(first.state_dict())
        with pytest.raises(InvalidConfigError, match=r"^fusion_logit must be a finite number"):
            second.load_state_dict({"fusion_logit": np.inf})
        assert second.fusion_weight == first.fusion_weight


class TestConfiguration:
    def test_config_or_fields(self):
        config = DualSpaceConfig(8, 4, 2, -1, 0.25, 2)
        attention = DualSpaceAttention(config)
        assert attention == DualSpaceAttention(
            euclidean_dim=8,
            hyperbolic_dim=4,
            num_heads=2,
            curvature=1.0,
            fusion_weight=0.25,
            temperature=2.0,
        )
        text = (
            "DualSpaceAttention(euclidean_dim=8, hyperbolic_dim=4, num_heads=2, curvature=1.0, "
            "fusion_weight=0.25, temperature=2.0, learn_fusion=True)"
        )
        assert repr(attention) == text
        assert eval(text, vars(ruvector)) == attention
        attention.parameters()["fusion_logit"][...] = 3.0
        assert hash(attention) == hash(DualSpaceAttention(config))
        for again in (
            copy.copy(attention),
            copy.deepcopy(attention),
            pickle.loads(pickle.dumps(attention)),
        ):
            assert again == attention
            assert again.fusion_weight == attention.fusion_weight > 0.9

    def test_properties(self):
        attention = DualSpaceAttention(CONFIGS[1])
        assert (attention.dim, attention.euclidean_dim, attention.hyperbolic_dim) == (18, 12, 6)
        assert (attention.num_heads, attention.curvature) == (3, 0.5)
        assert (attention.temperature, attention.learn_fusion) == (0.7, True)
        with pytest.raises(AttributeError):
            attention.temperature = 1.0
        with pytest.raises(AttributeError):
            CONFIGS[0].temperature = 1.0

    def test_factories(self):
        simple = DualSpaceAttention.simple(8, 4, 2, 1.0)
        assert simple == DualSpaceAttention(DualSpaceConfig(8, 4, 2, 1.0))
        fused = DualSpaceAttention.simple_fused(8, 2, 1.0, 0.25)
        assert fused == DualSpaceAttention(DualSpaceConfig(4, 4, 2, 1.0, 0.25))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: DualSpaceConfig(0, 4, 1, 1.0),
                "euclidean_dim must be an integer of at least 1, got 0",
            ),
            (
                lambda: DualSpaceConfig(4, 4.0, 1, 1.0),
                "hyperbolic_dim must be an integer of at least 1, got 4.0",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 0, 1.0),
                "num_heads must be an integer of at least 1, got 0",
            ),
            (
                lambda: DualSpaceConfig(4, 6, 4, 1.0),
                "num_heads must divide hyperbolic_dim, got num_heads=4 and hyperbolic_dim=6",
            ),
            (
                lambda: DualSpaceConfig(6, 4, 4, 1.0),
                "num_heads must divide euclidean_dim, got num_heads=4 and euclidean_dim=6",
            ),
            (lambda: DualSpaceConfig(4, 4, 2, 0.0), "curvature must not be 0, got 0.0"),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, 1.5),
                "fusion_weight must be between 0 and 1, got 1.5",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, 1.0),
                "fusion_weight must be strictly between 0 and 1 where it is learned, got 1.0",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, 0),
                "fusion_weight must be strictly between 0 and 1 where it is learned, got 0",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, temperature=0.0),
                "temperature must be a positive finite number, got 0.0",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, temperature=1e-40),
                "temperature must be at least 1e-12, got 1e-40",
            ),
            (
                lambda: DualSpaceConfig(4, 4, 2, 1.0, learn_fusion=0),
                "learn_fusion must be True or False, got 0",
            ),
            (
                lambda: DualSpaceAttention.simple_fused(7, 1, 1.0, 0.5),
                "dim must be even for two equal parts, got 7",
            ),
            (
                lambda: DualSpaceAttention(CONFIGS[0], num_heads=1),
                "config must not come with its fields, got ['num_heads']",
            ),
            (
                lambda: DualSpaceAttention(384),
                "config must be a DualSpaceConfig, got 384",
            ),
        ],
    )
    def test_refused(self, make, message):
        with pytest.raises(InvalidConfigError, match="^" + re.escape(message) + "$"):
            make()

    def test_values_of_another_width(self):
        q, k = np.zeros(12, np.float32), np.zeros((2, 12), np.float32)
        out = np.full(11, 7, np.float32)
        message = "values must have the width 12 of the keys, with the same two parts, got 11"
        with pytest.raises(DimensionMismatchError, match=f"^{message}$"):
            DualSpaceAttention(CONFIGS[0]).compute(q, k, k[:, :11], out=out)
        assert (out == 7).all()

"""MoEAttention and MoEConfig: parameters, configuration, copies and errors."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from moe_cases import DIM, arrays, expected, mixture, near

from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    MoEAttention,
    MoEConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestParameters:
    def test_names_and_shapes(self):
        parameters = mixture(experts=2).parameters()
        assert {name: array.shape for name, array in parameters.items()} == {
            "router.weight": (2, DIM),
            "experts.0.query.weight": (DIM, DIM),
            "experts.0.key.weight": (DIM, DIM),
            "experts.1.query.weight": (DIM, DIM),
            "experts.1.key.weight": (DIM, DIM),
        }
        assert {array.dtype for array in parameters.values()} == {np.dtype(np.float32)}

    def test_experts_start_near_the_identity_and_differ(self):
        parameters = MoEAttention(dim=64, num_experts=6, top_k=1).parameters()
        weights = [x for name, x in parameters.items() if name.startswith("experts")]
        for i, weight in enumerate(weights):
            noise = weight - np.eye(64)
            assert 0.018 < noise.std() < 0.022
            assert all((weight != other).any() for other in weights[:i])

    @pytest.mark.parametrize("kind", ["standard", "hyperbolic", "linear"])
    def test_experts_of_one_type_are_different_functions(self, kind):
        attention = mixture((kind, kind), count=1)
        q, k, v = arrays(8, 9)
        outputs = []
        for expert in range(2):
            attention.parameters()["router.weight"][...] = 0
            attention.parameters()["router.weight"][1 - expert] = -q.sum(axis=0) * 1e6
            outputs.append(attention.compute(q.mean(axis=0), k, v))
        assert (outputs[0] != outputs[1]).any()

    def test_they_are_live(self):
        attention = mixture()
        q, k, v = arrays(9, 9)
        before = attention.compute(q, k, v)
        for name in ("router.weight", "experts.0.query.weight", "experts.1.key.weight"):
            attention.parameters()[name][...] *= -1
            after = attention.compute(q, k, v)
            near(after, expected(attention, q, k, v)[0])
            assert (after != before).any()
            before = after

    def test_state_dict(self):
        attention, other = (
            mixture(),
            MoEAttention(dim=DIM, num_experts=5, top_k=2, seed=11, dtype="float64"),
        )
        q, k, v = arrays(9, 9)
        state = attention.state_dict()
        assert (other.compute(q, k, v) != attention.compute(q, k, v)).any()
        other.load_state_dict(state)
        near(other.compute(q, k, v), attention.compute(q, k, v))
        state["router.weight"][...] = 7
        assert (attention.parameters()["router.weight"] != 7).all()
        with pytest.raises(InvalidConfigError, match="state must hold"):
            other.load_state_dict({"router.weight": np.zeros((5, DIM))})
        state["router.weight"] = np.zeros((4, DIM))
        with pytest.raises(DimensionMismatchError, match=r"router\.weight must have shape"):
            other.load_state_dict(state)

    def test_seeds(self):
        def router(**options):
            return MoEAttention.simple(DIM, 4, 2, **options).parameters()["router.weight"]

        np.testing.assert_array_equal(router(), router(seed=42))
        assert (router(seed=1) != router(seed=2)).any()
        drawn = MoEAttention(MoEConfig(DIM, 4, 2), rng=np.random.default_rng(7)).parameters()[
            "router.weight"
        ]
        np.testing.assert_array_equal(drawn, router(seed=7))


class TestConfig:
    def test_fields(self):
        config = MoEConfig(64, 8, 2)
        assert config == MoEConfig(dim=64, num_experts=8, top_k=2, expert_capacity=1.25)
        assert (config.load_balance_weight, config.aux_loss_weight) == (0.01, 0.0)
        assert (config.jitter_noise, config.expert_types) == (0.0, None)
        with pytest.raises(AttributeError):
            config.dim = 3
        assert not hasattr(config, "__dict__")
        listed = MoEConfig(4, 2, 1, expert_types=["linear", "standard"])
        assert listed.expert_types == ("linear", "standard")
        assert hash(listed) == hash(MoEConfig(4, 2, 1, expert_types=("linear", "standard")))

    def test_types_cycle(self):
        assert MoEAttention.simple(4, 5, 2).expert_types == (
            "standard",
            "hyperbolic",
            "linear",
            "standard",
            "hyperbolic",
        )

    def test_properties(self):
        attention = MoEAttention(
            dim=4,
            num_experts=2,
            top_k=1,
            expert_capacity=2,
            load_balance_weight=0.2,
            aux_loss_weight=0.3,
            jitter_noise=0.1,
            expert_types=["standard"] * 2,
        )
        assert (attention.dim, attention.num_experts, attention.top_k) == (4, 2, 1)
        assert attention.expert_capacity == 2.0
        assert (attention.load_balance_weight, attention.aux_loss_weight) == (0.2, 0.3)
        assert attention.jitter_noise == 0.1

    def test_repr_equality_hash(self):
        attention = MoEAttention.simple(4, 3, 2)
        assert eval(repr(attention)) == attention
        assert attention == MoEAttention(MoEConfig(4, 3, 2), seed=9)
        assert hash(attention) == hash(MoEAttention(dim=4, num_experts=3, top_k=2))
        assert attention != MoEAttention.simple(4, 3, 1)
        assert attention != mixture()

    def test_pickle_and_deepcopy(self):
        attention = mixture(jitter_noise=0.3)
        q, k, v = arrays(9, 9)
        attention.compute(q, k, v)
        for twin in (pickle.loads(pickle.dumps(attention)), copy.deepcopy(attention)):
            assert twin == attention
            assert twin.routing_stats.queries == 9
            np.testing.assert_array_equal(twin.compute(q, k, v), attention.compute(q, k, v))
            twin.parameters()["router.weight"][...] = 0
            assert attention.parameters()["router.weight"].any()
        twin = copy.deepcopy(attention)
        np.testing.assert_array_equal(
            twin.compute(q, k, v, training=True), attention.compute(q, k, v, training=True)
        )

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dim": 0}, "dim must be an integer of at least 1, got 0"),
            ({"num_experts": 0}, "num_experts must be an integer of at least 1, got 0"),
            ({"num_experts": 2.5}, "num_experts must be an integer of at least 1, got 2.5"),
            ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
            ({"top_k": 5}, "top_k must be at most num_experts, got top_k=5 and num_experts=4"),
            ({"expert_capacity": 0}, "expert_capacity must be a positive finite number, got 0"),
            ({"expert_capacity": np.inf}, "expert_capacity must be a positive finite number"),
            ({"load_balance_weight": -1}, "load_balance_weight must not be negative, got -1"),
            ({"aux_loss_weight": -0.5}, "aux_loss_weight must not be negative, got -0.5"),
            ({"aux_loss_weight": np.nan}, "aux_loss_weight must be a finite number, got nan"),
            ({"jitter_noise": -0.1}, "jitter_noise must not be negative, got -0.1"),
            ({"jitter_noise": 1}, "jitter_noise must be less than 1, got 1"),
            ({"expert_types": "linear"}, "expert_types must be a sequence of types"),
            ({"expert_types": 3}, "expert_types must be a sequence of types, got 3"),
            (
                {"expert_types": ["standard", "flash", "linear", "linear"]},
                "expert_types must hold 'standard', 'hyperbolic' or 'linear', got 'flash'",
            ),
            (
                {"expert_types": ["standard"] * 3},
                "expert_types must hold 4 types, one per expert, got 3",
            ),
        ],
    )
    def test_wrong_configurations(self, fields, message):
        fields = {"dim": 8, "num_experts": 4, "top_k": 2} | fields
        with pytest.raises(InvalidConfigError, match=re.escape(message)):
            MoEConfig(**fields)
        with pytest.raises(InvalidConfigError, match=re.escape(message)):
            MoEAttention(**fields)

    def test_wrong_constructions(self):
        config = MoEConfig(4, 2, 1)
        with pytest.raises(InvalidConfigError, match="config must be a MoEConfig"):
            MoEAttention(4)
        with pytest.raises(InvalidConfigError, match="config must not come with its fields"):
            MoEAttention(config, top_k=1)
        with pytest.raises(InvalidConfigError, match="seed and rng must not both be given"):
            MoEAttention(config, seed=1, rng=np.random.default_rng())
        with pytest.raises(InvalidConfigError, match="rng must be a numpy"):
            MoEAttention(config, rng=3)
        with pytest.raises(InvalidConfigError, match="seed must be an integer"):
            MoEAttention(config, seed=1.5)
        with pytest.raises(InvalidConfigError, match="dtype must be 'float32' or 'float64'"):
            MoEAttention(config, dtype="float16")


class TestErrors:
    def test_no_lse(self):
        q, k, v = arrays(3, 9)
        with pytest.raises(
            InvalidConfigError,
            match="return_lse must be False: a mixture of experts has no single log-sum-exp",
        ):
            mixture().compute(q, k, v, return_lse=True)

    def test_training_is_a_flag(self):
        with pytest.raises(InvalidConfigError, match="training must be True or False"):
            mixture().compute(*arrays(3, 9), training=1)

    def test_shapes(self):
        attention = mixture()
        q, k, v = arrays(3, 9)
        with pytest.raises(EmptyInputError, match="keys must hold at least one vector"):
            attention.compute(q, k[:0], v[:0])
        with pytest.raises(DimensionMismatchError, match="query must have shape"):
            attention.compute(q[:, :4], k, v)
        with pytest.raises(DimensionMismatchError, match="values must hold 9 vectors"):
            attention.compute_with_aux_loss(q, k, v[:5])
        with pytest.raises(TypeError, match="query must hold real numbers"):
            attention.compute(q.astype(complex), k, v)

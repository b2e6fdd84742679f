"""HyperbolicAttention as an object: learned parameters, settings, errors."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest
from hyperbolic_attention_cases import ATTENTIONS, DIM, arrays, near

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    HyperbolicAttention,
    InvalidConfigError,
    InvalidMaskError,
)

pytestmark = pytest.mark.usefixtures("backend")


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

"""The optimisers' state: saved, resumed, reset; and clipping by the norm."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
from optim_cases import CASES, TOLERANCE, case_id, gradients_of

import ruvector
from ruvector.training import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm

pytestmark = pytest.mark.usefixtures("backend")


class TestState:
    @pytest.mark.parametrize("case", CASES, ids=case_id)
    @pytest.mark.parametrize("tree", [False, True])
    def test_resumes_to_the_same_bits(self, case, tree):
        kind, options = case
        rng = np.random.default_rng(5)
        gradients = gradients_of(rng, 33, 6, "float32")
        if tree:
            gradients = [{"a": g[:10], "b": [g[10:]]} for g in gradients]

        def fresh():
            x = np.random.default_rng(6).standard_normal(33).astype(np.float32)
            return {"a": x[:10].copy(), "b": [x[10:].copy()]} if tree else x

        whole, params = kind(0.1, **options), fresh()
        for gradient in gradients:
            whole.step(gradient, params=params)
        first, again = kind(0.1, **options), fresh()
        for gradient in gradients[:3]:
            first.step(gradient, params=again)
        file = io.BytesIO()
        np.savez(file, **first.state_dict())
        file.seek(0)
        second = kind(9.0, **options)
        with np.load(file) as saved:
            second.load_state_dict(saved)
        assert second.learning_rate == 0.1
        for gradient in gradients[3:]:
            second.step(gradient, params=again)
        for other in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
            assert repr(other) == repr(first)
            assert other.num_steps == 3
        if tree:
            params, again = [params["a"], *params["b"]], [again["a"], *again["b"]]
        for got, want in zip(again, params, strict=True):
            np.testing.assert_array_equal(got, want)

    def test_names(self):
        optimizer = AdamOptimizer(0.1, amsgrad=True)
        optimizer.step({"w": [np.ones(2)]})
        slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        state = optimizer.state_dict()
        assert list(state) == ["step", "learning_rate", *(f"{slot}.w.0" for slot in slots)]
        state["exp_avg.w.0"][:] = 7
        assert optimizer.state_dict()["exp_avg.w.0"][0] != 7

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"step": -1}, ruvector.InvalidConfigError),
            ({"step": 1.5}, ruvector.InvalidConfigError),
            ({"step": 0}, ruvector.InvalidConfigError),
            ({"learning_rate": np.inf}, ruvector.InvalidConfigError),
            ({"learning_rate": np.zeros(2)}, ruvector.InvalidConfigError),
            ({"exp_avg": None}, ruvector.InvalidConfigError),
            ({"exp_avg": None, "exp_avg_sq": None}, ruvector.InvalidConfigError),
            ({"exp_avg": np.zeros(3)}, ruvector.DimensionMismatchError),
            ({"exp_avg": np.zeros(2, int)}, TypeError),
            ({"momentum_buffer": np.zeros(2)}, ruvector.InvalidConfigError),
        ],
    )
    def test_broken(self, change, error):
        optimizer = AdamOptimizer(0.1)
        optimizer.step(np.ones(2))
        state = {**optimizer.state_dict(), **change}
        state = {name: value for name, value in state.items() if value is not None}
        before = optimizer.state_dict()
        with pytest.raises(error):
            optimizer.load_state_dict(state)
        for name, value in optimizer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_reset(self):
        optimizer = AdamOptimizer(0.1)
        first = optimizer.step(np.arange(1.0, 4.0))
        optimizer.step(np.ones(3))
        optimizer.reset()
        assert optimizer.num_steps == 0
        np.testing.assert_array_equal(optimizer.step(np.arange(1.0, 4.0)), first)
        optimizer.reset()
        assert optimizer.step(np.ones(5)).shape == (5,)

    def test_learning_rate(self):
        optimizer = AdamWOptimizer(0.1)
        optimizer.set_learning_rate(0.2)
        assert optimizer.learning_rate == optimizer.get_learning_rate() == 0.2

    @pytest.mark.parametrize(
        ("made", "text"),
        [
            (
                SGDOptimizer.with_momentum(0.1, 0.9),
                "SGDOptimizer(learning_rate=0.1, momentum=0.9, dampening=0.0, nesterov=False, "
                "weight_decay=0.0)",
            ),
            (
                SGDOptimizer.with_weight_decay(0.1, 0.9, 0.01),
                "SGDOptimizer(learning_rate=0.1, momentum=0.9, dampening=0.0, nesterov=False, "
                "weight_decay=0.01)",
            ),
            (
                AdamOptimizer.with_config(0.1, 0.8, 0.99, 1e-6, 0.1),
                "AdamOptimizer(learning_rate=0.1, beta1=0.8, beta2=0.99, epsilon=1e-06, "
                "weight_decay=0.1, amsgrad=False)",
            ),
            (
                AdamOptimizer.with_betas(0.1, 0.8, 0.99),
                "AdamOptimizer(learning_rate=0.1, beta1=0.8, beta2=0.99, epsilon=1e-08, "
                "weight_decay=0.0, amsgrad=False)",
            ),
            (
                AdamWOptimizer.with_betas(0.1, 0.2, 0.8, 0.99),
                "AdamWOptimizer(learning_rate=0.1, weight_decay=0.2, beta1=0.8, beta2=0.99, "
                "epsilon=1e-08, amsgrad=False)",
            ),
            (
                AdamWOptimizer.with_weight_decay(0.1, 0.2),
                "AdamWOptimizer(learning_rate=0.1, weight_decay=0.2, beta1=0.9, beta2=0.999, "
                "epsilon=1e-08, amsgrad=False)",
            ),
        ],
    )
    def test_factories_and_repr(self, made, text):
        assert repr(made) == text


class TestClipGradNorm:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_scales_to_the_maximum(self, dtype):
        rng = np.random.default_rng(7)
        x = {"a": rng.standard_normal((5, 7)).astype(dtype), "b": [rng.standard_normal(40)]}
        before = [x["a"].astype(np.float64), x["b"][0].copy()]
        norm = np.sqrt(sum((y**2).sum() for y in before))
        assert clip_grad_norm(x, 2.0) == pytest.approx(norm, rel=1e-12)
        np.testing.assert_allclose(x["a"], before[0] * 2 / norm, rtol=TOLERANCE[dtype])
        np.testing.assert_allclose(x["b"][0], before[1] * 2 / norm, rtol=1e-12)

    @pytest.mark.parametrize("maximum", [5.0, 6.0, np.inf])
    def test_leaves_what_is_short_enough(self, maximum):
        x = np.array([3.0, 4.0])
        assert clip_grad_norm(x, maximum) == 5.0
        np.testing.assert_array_equal(x, [3, 4])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_leaves_what_is_not_finite(self, bad):
        x = np.array([1.0, bad], np.float32)
        assert not np.isfinite(clip_grad_norm([x, np.ones(3)], 0.5))
        np.testing.assert_array_equal(x, np.array([1.0, bad], np.float32))

    @pytest.mark.parametrize("size", [1e-200, 1e-300, 1e200, 1e300])
    def test_extreme_numbers(self, size):
        x = [np.array([3.0, 0.0]) * size, np.array([4.0]) * size]
        assert clip_grad_norm(x, np.inf) == pytest.approx(5 * size, rel=1e-14)
        y = np.full(3, 1e-30, np.float32)
        assert clip_grad_norm(y, 1.0) == pytest.approx(3**0.5 * float(y[0]), rel=1e-14)

    def test_strided(self):
        x = np.full((4, 4), 2.0)
        assert clip_grad_norm(x[:, 1], 1.0) == 4.0
        np.testing.assert_array_equal(x[:, 1], 0.5)
        np.testing.assert_array_equal(x[:, 0], 2)

    def test_nothing(self):
        assert clip_grad_norm([], 1.0) == 0
        assert clip_grad_norm(np.zeros(3), 1.0) == 0

    @pytest.mark.parametrize("maximum", [0, -1.0, np.nan, "1", True])
    def test_maximum(self, maximum):
        with pytest.raises(ruvector.InvalidConfigError, match="max_norm must be a positive"):
            clip_grad_norm(np.ones(2), maximum)

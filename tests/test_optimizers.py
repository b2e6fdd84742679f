"""The optimisers against their formulas in float64: options, forms of a step, errors, state."""

from __future__ import annotations

import copy
from array import array

import numpy as np
import pytest
from optim_cases import CASES, TOLERANCE, case_id, expected, gradients_of, rates

import ruvector
from ruvector import _kernels
from ruvector.training import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm

pytestmark = pytest.mark.usefixtures("backend")

MOMENTUM = SGDOptimizer, {"momentum": 0.9}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_equals_the_formula_over_100_steps(case, dtype):
    kind, options = case
    rng = np.random.default_rng(0)
    params = rng.standard_normal(53).astype(dtype)
    gradients = gradients_of(rng, 53, 100, dtype)
    trail = expected(kind, options, params, gradients, rates(100))
    optimizer = kind(1.0, **options)
    for gradient, rate, wanted in zip(gradients, rates(100), trail, strict=True):
        optimizer.learning_rate = rate
        assert optimizer.step(gradient, params=params) is params
        np.testing.assert_allclose(params, wanted, rtol=0, atol=TOLERANCE[dtype])
    assert optimizer.num_steps == 100


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_structures_are_kept(case):
    kind, options = case
    rng = np.random.default_rng(1)
    shapes = {"w": (3, 5), "layers": [(7,), ()], "empty": (0, 4)}

    def tree(make):
        w, (a, b), e = shapes["w"], shapes["layers"], shapes["empty"]
        return {"w": make(w), "layers": [make(a), make(b)], "empty": make(e)}

    def leaves(x):
        return [x["w"], *x["layers"], x["empty"]]

    params = tree(lambda s: np.array(rng.standard_normal(s)))
    before = [np.array(x) for x in leaves(params)]
    steps = [tree(lambda s: np.array(rng.standard_normal(s))) for _ in range(4)]
    optimizer = kind(0.05, **options)
    for gradients in steps:
        # The order of a dict's keys does not matter.
        turned = dict(reversed(gradients.items()))
        assert optimizer.step(turned, params=params) is params
    for i, start in enumerate(before):
        trail = expected(kind, options, start, [leaves(g)[i] for g in steps], [0.05] * 4)
        np.testing.assert_allclose(leaves(params)[i], trail[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    "case", [MOMENTUM, (SGDOptimizer, {}), (AdamOptimizer, {"amsgrad": True})], ids=case_id
)
def test_updates_without_params(case, dtype):
    kind, options = case
    rng = np.random.default_rng(2)
    gradients = [(gradients_of(rng, 9, 1, dtype)[0], [1.0, -2.0]) for _ in range(5)]
    optimizer, total = kind(0.1, **options), [0, 0]
    for gradient in gradients:
        updates = optimizer.step(gradient)
        assert isinstance(updates, tuple)
        assert [u.dtype for u in updates] == [np.dtype(dtype), np.float32]
        total = [t + u.astype(np.float64) for t, u in zip(total, updates, strict=True)]
    for i in range(2):
        trail = [np.asarray(g[i], np.float64) for g in gradients]
        wanted = expected(kind, options, np.zeros_like(trail[0]), trail, [0.1] * 5)[-1]
        np.testing.assert_allclose(total[i], wanted, rtol=0, atol=2e-6)


def test_one_array_may_be_a_list_of_numbers():
    update = SGDOptimizer(0.5).step([[1.0, 2.0], [3.0, 4.0]])
    assert update.dtype == np.float32
    np.testing.assert_array_equal(update, [[-0.5, -1.0], [-1.5, -2.0]])
    assert SGDOptimizer(0.5).step([]) == []


class TestMemory:
    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x[::2, ::3],
            lambda x: x[::-1],
            lambda x: x.T,
            lambda x: x[:, 1:],
            lambda x: x.astype(">f4"),
            lambda x: np.frombuffer(bytearray(1) + bytearray(x.tobytes()), np.uint8)[1:].view(
                np.float32
            ),
        ],
        ids=["stepped", "turned round", "transposed", "columns", "byte order", "unaligned"],
    )
    def test_any_layout_is_updated_in_place(self, view):
        rng = np.random.default_rng(3)
        memory = rng.standard_normal((8, 12)).astype(np.float32)
        params = view(memory)
        start = np.array(params, np.float32)
        gradients = gradients_of(rng, start.shape, 3, "float32")
        rest = np.setdiff1d(memory, start)
        optimizer = AdamWOptimizer(0.1)
        for gradient in gradients:
            assert optimizer.step(gradient, params=params) is params
        wanted = expected(AdamWOptimizer, {}, start, gradients, [0.1] * 3)[-1]
        np.testing.assert_allclose(np.array(params, np.float32), wanted, rtol=0, atol=1e-6)
        assert np.isin(rest, memory).all()

    def test_columns_of_one_matrix(self):
        matrix = np.ones((4, 6))
        params = [matrix[:, :2], matrix[:, 2:]]
        SGDOptimizer(0.5).step([np.ones((4, 2)), np.full((4, 4), 2.0)], params=params)
        np.testing.assert_array_equal(matrix, [[0.5, 0.5, 0, 0, 0, 0]] * 4)

    def test_buffers_and_tensors(self):
        buffer = array("f", [1.0, 2.0])
        assert SGDOptimizer(1.0).step([1.0, 1.0], params=buffer) is buffer
        assert list(buffer) == [0.0, 1.0]

    @pytest.mark.parametrize("shift", [0, 3, -3])
    def test_gradients_may_lie_in_the_memory_of_params(self, shift):
        memory = np.random.default_rng(4).standard_normal(300).astype(np.float32)
        params = [memory[10:100], memory[110:200]]
        gradients = [memory[10 + shift : 100 + shift], memory[10 + shift : 100 + shift]]
        wanted = [p - np.float32(0.25) * g for p, g in zip(params, gradients, strict=True)]
        SGDOptimizer(0.25).step(gradients, params=params)
        for got, want in zip(params, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)

    def test_gradients_are_left_alone_and_converted(self):
        gradient = np.ones(5, np.float16)
        gradient.flags.writeable = False
        params = np.zeros(5, np.float32)
        AdamOptimizer(0.1).step(gradient, params=params)
        np.testing.assert_allclose(params, -0.1, rtol=1e-6)
        np.testing.assert_array_equal(gradient, 1)


class TestErrors:
    @pytest.mark.parametrize(
        ("params", "gradients", "error", "message"),
        [
            (np.zeros(3, np.int64), np.ones(3), TypeError, "params must have dtype"),
            (np.zeros(3, np.float16), np.ones(3), TypeError, "params must have dtype"),
            ([0.0, 1.0], np.ones(2), TypeError, "params must be an array"),
            ({"a": 1.0}, {"a": np.ones(1)}, TypeError, r"params\.a must be an array"),
            (np.float64(1), np.ones(()), TypeError, "params must be an array"),
            (np.broadcast_to(np.zeros(3), (2, 3)), np.ones((2, 3)), ValueError, "writeable"),
            (
                np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8)),
                np.ones((2, 3)),
                ruvector.InvalidConfigError,
                "repeat",
            ),
            (
                np.zeros(3),
                np.ones(4),
                ruvector.DimensionMismatchError,
                r"gradients must have shape \(3,\), got \(4,\)",
            ),
            ([np.zeros(3)], np.ones(3), ruvector.InvalidConfigError, "gradients must hold"),
            (
                {"a": np.zeros(1)},
                {"b": np.ones(1)},
                ruvector.InvalidConfigError,
                r"\['a'\], got \['b'\]",
            ),
            ([np.zeros(1)], [np.ones(1), np.ones(1)], ruvector.InvalidConfigError, "'1'"),
            (np.zeros(2), np.ones(2) * 1j, TypeError, "gradients must hold real"),
            (np.zeros(2), np.array(["a", "b"]), TypeError, "gradients must hold real"),
            (np.zeros(2), None, TypeError, "gradients must hold real"),
            ({1: np.zeros(2)}, {1: np.ones(2)}, ruvector.InvalidConfigError, "strings"),
            (
                {"a": [np.zeros(2)], "a.0": np.zeros(2)},
                np.ones(2),
                ruvector.InvalidConfigError,
                r"two arrays called 'a\.0'",
            ),
        ],
    )
    def test_of_arguments(self, params, gradients, error, message):
        with pytest.raises(error, match=message):
            AdamOptimizer(0.1).step(gradients, params=params)

    def test_an_array_twice(self):
        x = np.zeros(4)
        with pytest.raises(ruvector.InvalidConfigError, match=r"params\.1 must not share"):
            SGDOptimizer(0.1).step([np.ones(4), np.ones(4)], params=[x, x])
        with pytest.raises(ruvector.InvalidConfigError, match="must not share"):
            clip_grad_norm([x[:3], x[2:]], 1.0)

    @pytest.mark.parametrize("kind", [SGDOptimizer, AdamOptimizer, AdamWOptimizer])
    def test_weight_decay_without_params(self, kind):
        optimizer = kind(0.1, weight_decay=0.1)
        with pytest.raises(ruvector.InvalidConfigError, match="params must be given"):
            optimizer.step(np.ones(2))
        assert optimizer.num_steps == 0

    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            (SGDOptimizer, {"learning_rate": -1.0}),
            (SGDOptimizer, {"learning_rate": np.nan}),
            (SGDOptimizer, {"learning_rate": "fast"}),
            (SGDOptimizer, {"learning_rate": 1.0, "momentum": -0.1}),
            (SGDOptimizer, {"learning_rate": 1.0, "nesterov": True}),
            (
                SGDOptimizer,
                {"learning_rate": 1.0, "nesterov": True, "momentum": 0.9, "dampening": 0.1},
            ),
            (AdamOptimizer, {"learning_rate": 1.0, "beta1": 1.0}),
            (AdamOptimizer, {"learning_rate": 1.0, "beta2": -0.1}),
            (AdamWOptimizer, {"learning_rate": 1.0, "epsilon": -1e-8}),
            (AdamWOptimizer, {"learning_rate": 1.0, "weight_decay": -1.0}),
            (AdamWOptimizer, {"learning_rate": 1.0, "amsgrad": 1}),
        ],
    )
    def test_of_options(self, kind, options):
        with pytest.raises(ruvector.InvalidConfigError):
            kind(**options)

    @pytest.mark.parametrize(
        "case", [MOMENTUM, (AdamOptimizer, {"amsgrad": True})], ids=case_id
    )
    def test_nothing_changes(self, case, monkeypatch):
        kind, options = case
        optimizer = kind(0.1, **options)
        params = [np.ones(3), np.ones((2, 2), np.float32)]
        good = [np.ones(3), np.ones((2, 2))]
        optimizer.step(good, params=params)
        before, state = copy.deepcopy(params), optimizer.state_dict()
        bad = [
            ([np.ones(3), np.ones(4)], params),
            ([np.ones(3), np.array(["a"] * 4).reshape(2, 2)], params),
            (good[:1], params[:1]),
            (good, [params[0], params[0]]),
            ([np.ones(3), np.ones(5)], [params[0], np.ones(5)]),
            (good, [params[0], np.ones((2, 2))]),
        ]
        for gradients, targets in bad:
            with pytest.raises((TypeError, ruvector.RuvectorError)):
                optimizer.step(gradients, params=targets)

        def fail(*arguments):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(_kernels.optim, "adam", fail)
            patch.setattr(_kernels.optim, "sgd", fail)
            with pytest.raises(MemoryError):
                optimizer.step(good, params=params)
        with pytest.raises(ruvector.InvalidConfigError):
            optimizer.learning_rate = -1
        for got, want in zip(params, before, strict=True):
            np.testing.assert_array_equal(got, want)
        after = optimizer.state_dict()
        assert after.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(after[name], value)

"""The kernels of the optimisers: sizes around the vector widths, places in memory, threads."""

from __future__ import annotations

import numpy as np
import pytest
import reference_optim

import ruvector
from ruvector import _kernels
from ruvector._kernels.spec import AdamSpec, SGDSpec
from ruvector.training import AdamWOptimizer, SGDOptimizer, clip_grad_norm

SIZES = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    63,
    64,
    65,
    97,
    16383,
    16384,
    16385,
    40000,
]
TOLERANCE = {"float32": 1e-6, "float64": 1e-14}


def fenced(x, shift):
    """A copy `shift` elements into a larger array, whose rest shows what was overwritten."""
    memory = np.full(x.size + 80, 77, x.dtype)
    memory[shift : shift + x.size] = x
    return memory, memory[shift : shift + x.size]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", TOLERANCE)
class TestAnySizeAnywhere:
    def test_adam(self, dtype):
        rng = np.random.default_rng(0)
        for place, n in enumerate(SIZES):
            start = rng.standard_normal(n).astype(dtype)
            gradients = [rng.standard_normal(n).astype(dtype) for _ in range(2)]
            zeros = np.zeros(n, dtype)
            made = [
                fenced(x, (place + 3 * i) % 17) for i, x in enumerate([start, *[zeros] * 3])
            ]
            (p, m, v, w), memory = [x for _, x in made], [x for x, _ in made]
            for step, gradient in enumerate(gradients, 1):
                spec = AdamSpec(0.1, 0.9, 0.99, 1e-8, step, decay=0.1, shrinkage=0.01)
                _, g = fenced(gradient, place % 5)
                _kernels.optim.adam([p], [g], [m], [v], [w], spec, 1)
            slopes = [gradients[0] + 0.1 * start.astype(np.float64)]
            assert all(np.count_nonzero(x == 77) >= 80 for x in memory)
            np.testing.assert_allclose(v, w, rtol=1)
            once = 0.99 * start.astype(np.float64)
            once -= 0.1 * slopes[0] / (np.abs(slopes[0]) + 1e-8)
            slopes.append(gradients[1] + 0.1 * once)
            mean = 0.09 * slopes[0] + 0.1 * slopes[1]
            square = 0.0099 * slopes[0] ** 2 + 0.01 * slopes[1] ** 2
            peak = np.maximum(0.01 * slopes[0] ** 2, square)
            root = np.sqrt(peak / (1 - 0.99**2))
            wanted = 0.99 * once - 0.1 * mean / 0.19 / (root + 1e-8)
            np.testing.assert_allclose(p, wanted, rtol=0, atol=20 * TOLERANCE[dtype])
            np.testing.assert_allclose(m, mean, rtol=0, atol=TOLERANCE[dtype])
            np.testing.assert_allclose(v, square, rtol=0, atol=TOLERANCE[dtype])
            np.testing.assert_allclose(w, peak, rtol=0, atol=TOLERANCE[dtype])

    @pytest.mark.parametrize("nesterov", [False, True])
    def test_sgd(self, dtype, nesterov):
        rng = np.random.default_rng(1)
        for place, n in enumerate(SIZES):
            start = rng.standard_normal(n).astype(dtype)
            gradients = [rng.standard_normal(n).astype(dtype) for _ in range(3)]
            (around_p, p), (around_b, b) = fenced(start, place % 17), fenced(start, place % 3)
            for step, gradient in enumerate(gradients):
                spec = SGDSpec(0.1, 0.9, 0.0, nesterov, 0.05, first=step == 0)
                _kernels.optim.sgd([p], [gradient], [b], spec, 1)
            assert np.count_nonzero(around_p == 77) >= 80
            assert np.count_nonzero(around_b == 77) >= 80
            wanted = reference_optim.sgd(
                start, gradients, [0.1] * 3, momentum=0.9, nesterov=nesterov, weight_decay=0.05
            )[-1]
            np.testing.assert_allclose(p, wanted, rtol=0, atol=2 * TOLERANCE[dtype])

    def test_norm_and_scale(self, dtype):
        rng = np.random.default_rng(2)
        arrays = [rng.standard_normal(n).astype(dtype) for n in SIZES]
        total = sum((x.astype(np.float64) ** 2).sum() for x in arrays)
        assert _kernels.optim.norm(arrays, 1) == pytest.approx(np.sqrt(total), rel=1e-13)
        for x in arrays:
            memory, y = fenced(x, 3)
            _kernels.optim.scale([y], 0.3, 1)
            assert np.count_nonzero(memory == 77) >= 80
            np.testing.assert_allclose(y, x * 0.3, rtol=TOLERANCE[dtype], atol=0)

    def test_not_finite(self, dtype):
        bad = np.array([np.nan, np.inf, -np.inf, 1.0] * 9, dtype)
        p, m, v, w = (np.zeros(36, dtype) for _ in range(4))
        spec = AdamSpec(0.1, 0.9, 0.999, 1e-8, 1)
        _kernels.optim.adam([p], [bad], [m], [v], [w], spec, 1)
        # inf over inf
        np.testing.assert_allclose(p, [np.nan, np.nan, np.nan, -0.1] * 9, rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(w), np.isnan(v))
        _kernels.optim.adam([p], [np.ones(36, dtype)], [m], [v], [w], spec, 1)
        np.testing.assert_array_equal(np.isnan(w), [True, False, False, False] * 9)

    def test_infinite_parameters_without_decay(self, dtype):
        p, b = np.full(19, np.inf, dtype), np.zeros(19, dtype)
        gradient = np.ones(19, dtype)
        _kernels.optim.sgd([p], [gradient], None, SGDSpec(0.1), 1)
        _kernels.optim.sgd([p], [gradient], [b], SGDSpec(0.1, 0.9, first=True), 1)
        moments = np.zeros((2, 19), dtype)
        spec = AdamSpec(0.1, 0.9, 0.999, 1e-8, 1)
        _kernels.optim.adam([p], [gradient], [moments[0]], [moments[1]], None, spec, 1)
        np.testing.assert_array_equal(p, np.inf)


@pytest.mark.usefixtures("backend")
class TestThreads:
    """Enough numbers for several threads, in one array and in many."""

    SHAPES = ((200_001,), (70_000,), (3,), (16_384,), (0,), (33, 1000))

    def _trail(self, threads, make):
        rng = np.random.default_rng(3)
        params = [rng.standard_normal(shape).astype(np.float32) for shape in self.SHAPES]
        params[1] = params[1].astype(np.float64)
        optimizer = make()
        with ruvector.num_threads(threads):
            norms = []
            for _ in range(2):
                gradients = [rng.standard_normal(p.shape).astype(p.dtype) for p in params]
                norms.append(clip_grad_norm(gradients, 10.0))
                optimizer.step(gradients, params=params)
        return [*params, *gradients, np.array(norms)]

    @pytest.mark.parametrize(
        "make",
        [
            lambda: AdamWOptimizer(0.1, amsgrad=True),
            lambda: SGDOptimizer(0.1, 0.9, nesterov=True, weight_decay=0.1),
        ],
        ids=["AdamW", "SGD"],
    )
    def test_same_bits_for_any_number(self, make):
        alone = self._trail(1, make)
        for threads in (2, 8):
            for got, want in zip(self._trail(threads, make), alone, strict=True):
                np.testing.assert_array_equal(got, want)

    def test_same_bits_alone_and_among_others(self):
        rng = np.random.default_rng(4)
        x, g = rng.standard_normal((2, 50_000)).astype(np.float32)
        alone, among = x.copy(), [np.ones(70_000, np.float32), x.copy()]
        AdamWOptimizer(0.1).step(g, params=alone)
        with ruvector.num_threads(4):
            AdamWOptimizer(0.1).step([np.ones(70_000), g], params=among)
        np.testing.assert_array_equal(alone, among[1])


@pytest.mark.usefixtures("backend")
def test_large_shift_of_alignment_changes_no_bit(backend):
    if backend[0] == "python":
        pytest.skip("NumPy's loops may depend on alignment")
    rng = np.random.default_rng(5)
    x, g = rng.standard_normal((2, 1000)).astype(np.float32)
    results = []
    for shift in range(17):
        arrays = [fenced(a, (shift * (i + 1)) % 17)[1] for i, a in enumerate([x, g, x, abs(x)])]
        p, gradient, m, v = arrays
        spec = AdamSpec(0.1, 0.9, 0.999, 1e-8, 3, shrinkage=0.01)
        _kernels.optim.adam([p], [gradient], [m], [v], None, spec, 1)
        results.append(np.concatenate([p, m, v]))
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.usefixtures("backend")
def test_other_dtypes_are_refused(backend):
    if backend[0] == "python":
        pytest.skip("the facades check; NumPy takes any")
    for call in (
        lambda x: _kernels.optim.norm([x], 1),
        lambda x: _kernels.optim.scale([x], 2.0, 1),
        lambda x: _kernels.optim.sgd([x], [x], None, SGDSpec(0.1), 1),
    ):
        with pytest.raises(TypeError, match="no kernel for arrays of int64"):
            call(np.zeros(3, np.int64))


@pytest.mark.usefixtures("backend")
def test_bounds():
    """Of every layout that has its own lowest and highest element."""
    x = np.zeros((4, 6))
    reversed_rows, one = x[::-1, ::2], x[0, 0, ...]
    arrays = [x, x[1:3, 2:4], reversed_rows, x[:, ::-1], one, x.view(np.uint8)[:, 5:]]
    expected = np.array([(0, 192), (64, 128), (0, 184), (0, 192), (0, 8), (5, 192)])
    found = _kernels.optim.bounds(arrays)
    np.testing.assert_array_equal(found, expected + x.ctypes.data)
    assert _kernels.optim.bounds([]).shape == (0, 2)
    ((low, high),) = _kernels.optim.bounds([x[:, :0]])
    assert low == high

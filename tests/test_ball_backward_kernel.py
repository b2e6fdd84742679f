"""The kernel of the gradient with a part in the ball against differences of the forward's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ball_cases import ball_case
from softmax_cases import quiet

import ruvector
from ruvector import _kernels

NAMES = ("query", "key", "value", "ball_query", "ball_key", "ball_value")
SHAPES = {
    "few": {},
    "grouped heads": {"heads": 4, "key_heads": 2, "batch": 2, "num_queries": 2, "num_keys": 4},
    "all in the ball": {"flat": None, "dim_v": 4},
    "one query": {"num_queries": 1, "num_keys": 1},
    "tangents": {"tangent": True, "curvature": 2.5},
    "shortened": {"radius": 3.0, "curvature": 1e8},
}
VISIBLE = {
    "causal": {"causal": True, "bottom_right": True},
    "window": {"left": 2, "right": 1, "num_sinks": 1},
    "positions": {"causal": True, "positions": np.array([4, 0, 5, 2, 2])},
    "sinks": {"sink_logits": np.array([0.3, -np.inf])},
}


def brief_case(**options):
    """Make a case whose states are small, so that differences of them are exact."""
    small = {"dim": 3, "flat": 3, "flat_v": 2, "num_keys": 6, "dtype": "float64"}
    return ball_case(**(small | {"radius": 0.35} | options))


def gradients(case, grads, threads=1, parameters=True):
    """Run both kernels; returns the value and the gradients by name."""
    out, state, lse = case.attend(threads)
    grad_out, grad_state, grad_lse = grads
    value = (state * grad_state).sum() + np.where(np.isinf(lse), 0, lse * grad_lse).sum()
    joined, grad_joined = state, grad_state
    if out is not None:
        value += (out * grad_out).sum()
        joined = np.concatenate((out, state), axis=-1)
        grad_joined = np.concatenate((grad_out, grad_state), axis=-1)
    arrays = (*case.flat, *case.curved)
    found = [None if x is None else np.full(x.shape, np.nan, x.dtype) for x in arrays]
    bias = None if case.spec.bias is None else np.zeros(case.spec.bias.shape, lse.dtype)
    numbers = np.full(3, np.nan) if parameters else None
    with quiet():
        _kernels.softmax_backward.attend_ball_backward(
            *arrays, joined, lse, grad_joined, grad_lse, None, *found, bias, numbers,
            case.spec, case.ball, threads,
        )  # fmt: skip
    return value, dict(zip((*NAMES, "bias", "numbers"), (*found, bias, numbers), strict=True))


def random_gradients(case, seed=5):
    rng = np.random.default_rng(seed)
    out, state, lse = case.attend()
    return [None if x is None else rng.standard_normal(x.shape) for x in (out, state, lse)]


def with_inputs(case, arrays):
    flat = tuple(arrays.get(name) for name in NAMES[:3])
    spec = replace(case.spec, bias=arrays["bias"]) if "bias" in arrays else case.spec
    if "numbers" in arrays:
        scale, distance_scale, curvature = arrays["numbers"]
        spec = replace(spec, scale=float(scale))
        ball = replace(
            case.ball, distance_scale=float(distance_scale), curvature=float(curvature)
        )
        case = replace(case, ball=ball)
    curved = tuple(arrays[name] for name in NAMES[3:])
    return replace(case, flat=flat, curved=curved, spec=spec)


def check(case, numbers=True, **bounds):
    inputs = {
        name: array
        for name, array in zip(NAMES, (*case.flat, *case.curved), strict=True)
        if array is not None
    }
    if case.spec.bias is not None:
        inputs["bias"] = case.spec.bias
    if numbers:
        ball = case.ball
        inputs["numbers"] = np.array([case.spec.scale, ball.distance_scale, ball.curvature])
    grads = random_gradients(case)
    assert ruvector.gradcheck(
        lambda **arrays: gradients(with_inputs(case, arrays), grads), inputs, **bounds
    )


@pytest.mark.usefixtures("backend")
class TestCentralDifferences:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_shapes(self, shape):
        case = brief_case(**SHAPES[shape])
        if shape == "shortened":
            # A step of the curvature is of another order than one of the rows.
            check(case, numbers=False, eps=1e-10, atol=0.1)
        else:
            check(case)

    @pytest.mark.parametrize("visible", VISIBLE)
    def test_visible_keys(self, visible):
        check(brief_case(**VISIBLE[visible]))

    def test_bias(self):
        bias = np.random.default_rng(0).standard_normal((1, 2, 5, 6))
        check(brief_case(bias=bias))


SIZES = (1, 7, 15, 16, 17, 31, 33, 97)


@pytest.mark.usefixtures("backend")
class TestSizes:
    @pytest.mark.parametrize("num_keys", SIZES)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_against_the_twin_in_float64(self, num_keys, dtype):
        for num_queries, dim, tangent in ((1, 5, False), (17, 16, True), (70, 33, False)):
            mask = np.random.default_rng(0).random((1, 2, num_queries, num_keys)) < 0.8
            case = ball_case(
                num_queries=num_queries, num_keys=num_keys, dim=dim, dtype=dtype, mask=mask,
                tangent=tangent, radius=0.4,
            )  # fmt: skip
            wide = replace(
                case,
                dtype="float64",
                flat=tuple(x.astype(np.float64) for x in case.flat),
                curved=tuple(x.astype(np.float64) for x in case.curved),
            )
            grads = random_gradients(wide)
            _, got = gradients(case, grads)
            before = _kernels.backend, _kernels.isa
            _kernels.select("python")
            _, wanted = gradients(wide, grads)
            _kernels.select(*before)
            bound = {"float32": 3e-5, "float64": 1e-11}[dtype]
            for name, array in wanted.items():
                if array is not None:
                    largest = np.abs(array).max(initial=1)
                    np.testing.assert_allclose(
                        got[name], array, rtol=0, atol=bound * largest, err_msg=name
                    )

    def test_bits_do_not_depend_on_threads(self):
        bias = np.random.default_rng(0).standard_normal((1, 2, 130, 300)).astype(np.float32)
        case = ball_case(num_queries=130, num_keys=300, dim=32, bias=bias)
        grads = random_gradients(case)
        _, one = gradients(case, grads, 1)
        for threads in (2, 8):
            _, several = gradients(case, grads, threads)
            for name, array in one.items():
                np.testing.assert_array_equal(several[name], array)

    def test_parameters_change_nothing_else(self):
        case = ball_case(num_queries=9, num_keys=20)
        grads = random_gradients(case)
        _, with_them = gradients(case, grads)
        _, without = gradients(case, grads, parameters=False)
        for name in NAMES:
            np.testing.assert_array_equal(with_them[name], without[name])

    def test_no_scale(self):
        check(brief_case().with_spec(scale=0.0))

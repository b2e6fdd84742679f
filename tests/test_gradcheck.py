"""The public gradient check: what it accepts, what it finds, what it says."""

from __future__ import annotations

import numpy as np
import pytest

import ruvector


def cubes(x, y):
    return (x**3).sum() + (2 * x * y).sum(), (3 * x**2 + 2 * y, 2 * x)


X, Y = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(2, 3, 6).reshape(2, 3)


def test_right_gradients():
    assert ruvector.gradcheck(cubes, (X, Y)) is True
    assert ruvector.gradcheck(cubes, [X.tolist(), Y.astype(np.float32)]) is True


def test_named_inputs():
    def fn(x, y):
        value, (gx, gy) = cubes(x, y)
        return value, {"x": gx, "y": gy}

    assert ruvector.gradcheck(fn, {"x": X, "y": Y})

    class Result:
        x, y = 3 * X**2 + 2 * Y, None

    assert ruvector.gradcheck(lambda x, y: (cubes(x, y)[0], Result), {"x": X, "y": Y})


def test_wrong_entry_is_reported():
    def fn(x, y):
        value, (gx, gy) = cubes(x, y)
        gx = gx.copy()
        gx[1, 2] += 0.5
        return value, (gx, gy)

    with pytest.raises(ruvector.GradientCheckError) as caught:
        ruvector.gradcheck(fn, (X, Y))
    message = str(caught.value)
    assert "gradient of inputs[0] is wrong in 1 of 6 entries (largest error 0.5)" in message
    assert "at (1, 2): gradient 9.5, differences 9" in message
    assert "inputs[1]" not in message
    assert isinstance(caught.value, AssertionError)
    assert ruvector.gradcheck(fn, (X, Y), raise_exception=False) is False


def test_nan_is_wrong():
    with pytest.raises(ruvector.GradientCheckError, match="wrong in 6 of 6"):
        ruvector.gradcheck(lambda x: (x.sum(), [np.full(x.shape, np.nan)]), [X])


def test_none_passes_an_input_over():
    assert ruvector.gradcheck(lambda x, y: (cubes(x, y)[0], (None, 2 * x)), (X, Y))


def test_inputs_are_left_alone_and_may_be_scalars():
    x = np.array(2.0)
    assert ruvector.gradcheck(lambda x: (x**2, [2 * x]), [x])
    assert x == 2.0

    def greedy(x):
        value, gradient = (x**2).sum(), 2 * x
        x[...] = 0
        return value, [gradient]

    assert ruvector.gradcheck(greedy, [X])


def test_large_numbers():
    x = np.array([1e9, -3e8])
    assert ruvector.gradcheck(lambda x: (x.sum(), [np.ones(2)]), [x], eps=1.0, atol=1e-3)


@pytest.mark.parametrize(
    ("fn", "inputs", "error", "match"),
    [
        (lambda x: (x, [x]), [X], "DimensionMismatchError", "value of fn must be a scalar"),
        (lambda x: (x.sum(), []), [X], "DimensionMismatchError", "must return 1 gradients"),
        (
            lambda x: (x.sum(), [np.ones(2)]),
            [X],
            "DimensionMismatchError",
            r"gradient of inputs\[0\] must have shape \(2, 3\), got \(2,\)",
        ),
        (cubes, [], "InvalidConfigError", "at least one array"),
    ],
)
def test_errors(fn, inputs, error, match):
    with pytest.raises(getattr(ruvector, error), match=match):
        ruvector.gradcheck(fn, inputs)


def test_wrong_types():
    with pytest.raises(TypeError, match=r"inputs\[0\] must hold real numbers"):
        ruvector.gradcheck(cubes, [X + 1j, Y])
    with pytest.raises(ruvector.InvalidConfigError, match="eps must be a positive"):
        ruvector.gradcheck(cubes, [X, Y], eps=0)

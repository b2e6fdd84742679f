"""The formula that the gradient kernels are held to is the derivative of the forward one."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import reference_backward

PLACES = {"bias": "bias", "slopes": "slopes", "sinks": "sink_logits"}


@pytest.mark.parametrize("name", ["query", "key", "value", "bias", "slopes", "sinks"])
def test_central_differences(name):
    rng = np.random.default_rng(0)
    spec = {
        "bias": rng.standard_normal((1, 2, 4, 5)),
        "slopes": rng.random(2),
        "sink_logits": rng.standard_normal(2),
        "scale": 0.6,
        "softcap": 2.0,
        "causal": True,
        "bottom_right": True,
    }
    arrays = {
        key: rng.standard_normal(shape)
        for key, shape in {
            "query": (1, 2, 4, 3),
            "key": (1, 1, 5, 3),
            "value": (1, 1, 5, 2),
        }.items()
    }
    grad_out, grad_lse = rng.standard_normal((1, 2, 4, 2)), rng.standard_normal((1, 2, 4))
    moved = arrays[name] if name in arrays else spec[PLACES[name]]

    def loss():
        out, lse, _ = reference.attention(**arrays, **spec)
        return (out * grad_out).sum() + (lse * grad_lse).sum()

    exact = reference_backward.gradients(**arrays, grad_out=grad_out, grad_lse=grad_lse, **spec)
    difference = np.zeros(moved.shape)
    for index in np.ndindex(moved.shape):
        before = moved[index]
        moved[index] = before + 1e-6
        above = loss()
        moved[index] = before - 1e-6
        difference[index] = (above - loss()) / 2e-6
        moved[index] = before
    np.testing.assert_allclose(getattr(exact, name), difference, atol=1e-8)

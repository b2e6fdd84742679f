"""The gradient kernel of linear attention against differences of a reference in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from linear_cases import KERNELS, problem
from softmax_cases import compute_dtype, quiet, to_float64, to_storage

from ruvector import _kernels
from ruvector._kernels.fallback import _sums

pytestmark = pytest.mark.usefixtures("backend")

NAMES = ("query", "key", "value", "bias", "projection")


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def upstream(p, with_lse=True):
    """Draw gradients of output and L, in the types that the kernel takes."""
    shape = (*p.query.shape[:3], p.value.shape[3])
    grad_lse = normal(*shape[:3], seed=7).astype(compute_dtype(p.dtype))
    return to_storage(normal(*shape, seed=6), p.dtype), grad_lse if with_lse else None


def differentiate(p, grad_out, grad_lse, threads=1):
    """Run the kernel; returns gradients by name."""
    with quiet():
        out, _ = p.attend()
    made = [np.full_like(x, 7) for x in (p.query, p.key, p.value)]
    grad_bias = None if p.bias is None else np.full_like(p.bias, np.nan)
    projection = np.zeros(p.features.projection.shape)
    with quiet():
        _kernels.linear_backward.attend_backward(
            p.query, p.key, p.value, p.bias, out, grad_out, grad_lse, *made, grad_bias,
            projection, p.causal, p.features, threads,
        )  # fmt: skip
    return dict(zip(NAMES, (*made, grad_bias, projection), strict=True))


def replaced(p, name, array):
    if name == "projection":
        return replace(p, features=replace(p.features, projection=array))
    return replace(p, **{name: array})


def loss(p, grad_out, grad_lse):
    out, lse, _ = p.reference()
    total = (out * to_float64(grad_out)).sum()
    if grad_lse is not None:
        total += (grad_lse * np.where(np.isfinite(lse), lse, 0)).sum()
    return total


def check(p, with_lse=True, names=NAMES, directions=None):
    """Compare with central differences: entry by entry, or along random directions."""
    grads = upstream(p, with_lse)
    made = differentiate(p, *grads)
    # Small enough for none of these problems to cross a kink.
    step = 1e-6
    for name in names:
        array = p.features.projection if name == "projection" else getattr(p, name)
        if array is None:
            continue
        if directions is None:
            steps = np.eye(array.size).reshape(-1, *array.shape)
        else:
            steps = normal(directions, *array.shape)
        if name == "bias":
            steps = np.where(np.isfinite(array), steps, 0)
        for direction in steps:
            sides = [
                loss(replaced(p, name, array + s * step * direction), *grads) for s in (1, -1)
            ]
            quotient = (sides[0] - sides[1]) / (2 * step)
            got = (made[name] * direction).sum()
            assert got == pytest.approx(quotient, rel=3e-6, abs=3e-7), name


def small(**options):
    defaults = {"num_queries": 4, "num_keys": 6, "dim": 3, "dim_v": 2, "num_features": 5}
    return problem(dtype="float64", **{**defaults, **options})


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
class TestDifferences:
    # A large epsilon, so that the gradients of the maxima are seen.
    def test_every_entry(self, kernel, causal):
        epsilon = 0.1 if kernel == "softmax" else None
        check(small(kernel=kernel, causal=causal, epsilon=epsilon))

    def test_bias(self, kernel, causal):
        bias = normal(1, 6)
        bias[0, [0, 3]] = -np.inf
        epsilon = 0.1 if kernel == "softmax" else None
        check(small(kernel=kernel, causal=causal, bias=bias, epsilon=epsilon))

    def test_more_queries_than_keys(self, kernel, causal):
        check(small(kernel=kernel, causal=causal, num_queries=6, num_keys=4), False)

    def test_batch(self, kernel, causal):
        bias = normal(2, 6)
        check(small(kernel=kernel, causal=causal, batch=2, bias=bias), directions=3)

    @pytest.mark.parametrize("num_queries", [200, 150])
    def test_blocks_and_tiles(self, kernel, causal, num_queries, monkeypatch):
        monkeypatch.setattr(_sums, "_FEATURES", 320)
        # Rising, so that maxima lie in every block.
        bias = normal(1, 200) + np.linspace(0, 6, 200)
        bias[0, 90:140] = -np.inf
        epsilon = 0.01 if kernel == "softmax" else None
        p = small(
            kernel=kernel, causal=causal, num_queries=num_queries, num_keys=200, heads=1,
            bias=bias, epsilon=epsilon,
        )  # fmt: skip
        check(p, directions=1)

"""Problems for the kernels of linear attention, how to run them, and how near they must be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import reference_linear
from softmax_cases import TOLERANCES, compute_dtype, quiet, to_float64, to_storage

from ruvector import _kernels
from ruvector._kernels.spec import FeatureSpec, LinearState

KERNELS = ("softmax", "relu", "elu")


def new_state(batch, heads, num_features, dim_v, kernel="softmax"):
    """Make the state of no keys."""
    return LinearState(
        np.zeros((batch, heads, num_features, dim_v)),
        np.zeros((batch, heads, num_features)),
        np.full((batch, heads), -np.inf if kernel == "softmax" else 0.0),
        np.zeros((batch, heads, dim_v)),
        np.zeros((batch, heads), np.int64),
    )


@dataclass
class Problem:
    """Arguments of a kernel."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray | None
    causal: bool
    features: FeatureSpec
    dtype: str

    def options(self):
        """Give the keywords of the reference that describe the features."""
        f = self.features
        return {
            "kernel": f.kernel,
            "scale": f.scale,
            "epsilon": f.epsilon,
            "gain": f.gain,
            "bias": self.bias,
        }

    def reference(self):
        """Compute (out, lse, weights) in float64."""
        arrays = (to_float64(x) for x in (self.query, self.key, self.value))
        return reference_linear.attention(
            *arrays, self.features.projection, causal=self.causal, **self.options()
        )

    def results(self):
        """Make the arrays that a kernel fills."""
        shape = self.query.shape[:3]
        out = to_storage(np.full((*shape, self.value.shape[3]), np.nan), self.dtype)
        return out, np.full(shape, np.nan, compute_dtype(self.dtype))

    def attend(self, threads=1):
        """Run the kernel in use on all of it."""
        out, lse = self.results()
        with quiet():
            _kernels.linear.attend(
                self.query,
                self.key,
                self.value,
                self.bias,
                out,
                lse,
                self.causal,
                self.features,
                threads,
            )
        return out, lse

    def state(self, threads=1, keys=slice(None)):
        """Make the state of the keys, or of some of them."""
        batch, heads = self.key.shape[:2]
        m = len(self.features.projection)
        state = new_state(batch, heads, m, self.value.shape[3], self.features.kernel)
        self.absorb(state, keys, threads)
        return state

    def absorb(self, state, keys=slice(None), threads=1):
        """Add some of the keys to a state."""
        bias = None if self.bias is None else self.bias[:, keys]
        with quiet():
            _kernels.linear.absorb(
                self.key[:, :, keys],
                self.value[:, :, keys],
                bias,
                state,
                self.features,
                threads,
            )

    def read(self, state, threads=1):
        """Attend from a state."""
        out, lse = self.results()
        with quiet():
            _kernels.linear.attend_state(self.query, state, out, lse, self.features, threads)
        return out, lse

    def compare(self, out, lse, expected=None, slack=1.0):
        """Assert that results are as near as the types allow."""
        expected_out, expected_lse, _ = self.reference() if expected is None else expected
        tolerance = TOLERANCES[self.dtype]
        values = np.abs(to_float64(self.value))
        largest = values.max(initial=0, where=np.isfinite(values))
        np.testing.assert_allclose(
            to_float64(out),
            expected_out,
            rtol=slack * tolerance.rtol,
            atol=slack * tolerance.atol * max(1, largest),
        )
        bound = slack * (1e-12 if self.dtype == "float64" else 1e-5)
        np.testing.assert_allclose(lse, expected_lse, rtol=bound, atol=bound)

    def check(self, threads=1, slack=1.0):
        """Compare the kernel in use with the reference."""
        self.compare(*self.attend(threads), slack=slack)


def problem(
    seed=0,
    *,
    kernel="softmax",
    batch=1,
    heads=2,
    num_queries=5,
    num_keys=9,
    dim=8,
    dim_v=None,
    num_features=20,
    dtype="float32",
    bias=None,
    causal=False,
    norm=None,
    epsilon=None,
):
    """Make a problem of normally distributed numbers, or of queries and keys of one norm."""
    rng = np.random.default_rng(seed)
    dim_v = dim if dim_v is None else dim_v
    shapes = ((num_queries, dim), (num_keys, dim), (num_keys, dim_v))
    query, key, value = (rng.standard_normal((batch, heads, *shape)) for shape in shapes)
    if norm is not None:
        query, key = (
            norm * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key)
        )
    arrays = [to_storage(x, dtype) for x in (query, key, value)]
    real = compute_dtype(dtype)
    projection = np.eye(dim) if kernel == "elu" else rng.standard_normal((num_features, dim))
    if isinstance(bias, str) and bias == "hidden":
        bias = np.where(rng.random((batch, num_keys)) < 0.6, 0, -np.inf)
    elif isinstance(bias, str):
        bias = np.where(
            rng.random((batch, num_keys)) < 0.8,
            rng.standard_normal((batch, num_keys)),
            -np.inf,
        )
    features = FeatureSpec(
        kernel=kernel,
        projection=np.ascontiguousarray(projection, real),
        scale=dim**-0.25 if kernel == "softmax" else 1.0,
        epsilon=(
            {"softmax": 1e-6, "relu": 1e-3, "elu": 0.0}[kernel] if epsilon is None else epsilon
        ),
        gain=1.0 if kernel == "elu" else 1 / num_features,
    )
    return Problem(
        *arrays, None if bias is None else bias.astype(real), causal, features, dtype
    )


def scaled(case, factor):
    """Multiply queries and keys by a factor."""
    return replace(case, query=case.query * factor, key=case.key * factor)

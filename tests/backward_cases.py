"""Gradients of the softmax kernels: how to run them, and how near the result must be."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np
import reference_backward
from softmax_cases import Problem, compute_dtype, problem, quiet, to_float64, to_storage

from ruvector import _kernels

# Bounds on the error, as a part of the largest entry of the gradient: the storage types
# round o, dO and the result, and L of float32 the weights.
TOLERANCES = {"float32": 2e-5, "float64": 1e-11, "float16": 3e-3, "bfloat16": 2e-2}


class Gradients(NamedTuple):
    """The arrays that a kernel wrote; None where not wanted."""

    query: np.ndarray | None
    key: np.ndarray | None
    value: np.ndarray | None
    bias: np.ndarray | None
    slopes: np.ndarray | None
    sinks: np.ndarray | None


def gradients_of(case: Problem, seed=1, with_lse=True):
    """Make gradients of o and L for a problem, the former in its storage type."""
    rng = np.random.default_rng(seed)
    shape = case.query.shape[:3]
    grad_out = to_storage(rng.standard_normal((*shape, case.value.shape[3])), case.dtype)
    if not with_lse:
        return grad_out, None
    return grad_out, rng.standard_normal(shape).astype(compute_dtype(case.dtype))


def bias_shape(bias):
    """Give the shape of a bias with the axes along which it repeats itself reduced to 1."""
    return tuple(
        1 if stride == 0 else length
        for length, stride in zip(bias.shape, bias.strides, strict=True)
    )


def backward(case: Problem, grad_out, grad_lse, *, threads=1, without=(), state=None):
    """Run the kernels in use: forward, then backward."""
    out, lse = case.attend(threads) if state is None else state
    dtype = compute_dtype(case.dtype)
    spec, heads = case.spec, case.query.shape[1]

    def target(name, array):
        if name in without:
            return None
        return to_storage(np.full(array.shape, np.nan), case.dtype)

    bias = slopes = sinks = None
    if spec.bias is not None and "bias" not in without:
        bias = np.zeros(bias_shape(spec.bias), dtype)
    if spec.slopes is not None and "slopes" not in without:
        slopes = np.full(heads, np.nan, dtype)
    if spec.sink_logits is not None and "sinks" not in without:
        sinks = np.full(heads, np.nan, dtype)
    result = Gradients(
        target("query", case.query),
        target("key", case.key),
        target("value", case.value),
        bias,
        slopes,
        sinks,
    )
    with quiet():
        _kernels.softmax_backward.attend_backward(
            case.query, case.key, case.value, out, lse, grad_out, grad_lse, *result, spec,
            threads,
        )  # fmt: skip
    return result


def expected(case: Problem, grad_out, grad_lse):
    """Compute the gradients in float64, that of the bias summed to its own shape."""
    options = {field.name: getattr(case.spec, field.name) for field in fields(case.spec)}
    result = reference_backward.gradients(
        *(to_float64(a) for a in (case.query, case.key, case.value, grad_out)),
        None if grad_lse is None else grad_lse.astype(np.float64),
        **options,
    )
    bias = case.spec.bias
    if bias is not None:
        axes = tuple(np.flatnonzero(np.array(bias_shape(bias)) != bias.shape))
        result = result._replace(bias=result.bias.sum(axis=axes, keepdims=True))
    return result


def compare(got: Gradients, wanted, dtype):
    """Assert that each gradient that was wanted is as near as the storage type allows."""
    for name, array in got._asdict().items():
        if array is None:
            continue
        true = getattr(wanted, name)
        finite = np.abs(true[np.isfinite(true)])
        bound = TOLERANCES[dtype] * max(1.0, finite.max(initial=0.0))
        np.testing.assert_allclose(
            to_float64(array), true, rtol=0, atol=bound, err_msg=f"gradient of {name}"
        )


def check(case: Problem, *, seed=1, with_lse=True, threads=1, without=()):
    """Compare the kernels in use with the reference."""
    grad_out, grad_lse = gradients_of(case, seed, with_lse)
    got = backward(case, grad_out, grad_lse, threads=threads, without=without)
    compare(got, expected(case, grad_out, grad_lse), case.dtype)
    return got


__all__ = [
    "Gradients",
    "backward",
    "bias_shape",
    "check",
    "compare",
    "expected",
    "gradients_of",
    "problem",
]

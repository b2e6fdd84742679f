"""The gradient of one problem of linear attention, summed over the axes that broadcast."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import _config, _kernels
from ._arrays import Array
from ._backward import add_summed, parts, spread
from ._features import LinearProblem
from ._problem import batches

__all__ = ["LinearTargets", "differentiate_linear"]


class LinearTargets(NamedTuple):
    """Where the gradients of a problem go.

    The first four have the axes of what they are the gradients of in the
    :class:`LinearProblem`, with length 1 along those that the caller's array is broadcast
    over; see :func:`new_target`. The bias has None where it is not wanted, and so has the
    projection, of float64 (M, D).
    """

    query: Array
    key: Array
    value: Array
    bias: Array | None = None
    projection: Array | None = None


def differentiate_linear(
    problem: LinearProblem,
    output: Array,
    grad_output: Array,
    grad_lse: Array | None,
    targets: LinearTargets,
) -> None:
    """Write the gradient of ``sum(output * grad_output) + sum(lse * grad_lse)``.

    Parameters
    ----------
    problem : LinearProblem
        What was computed.
    output : ndarray, shape (..., H, Lq, Dv)
        What :meth:`LinearProblem.attend` wrote.
    grad_output : ndarray, shape (..., H, Lq, Dv)
        Of the problem's storage dtype, with contiguous rows.
    grad_lse : ndarray, shape (..., H, Lq), or None
        Of the compute dtype.
    targets : LinearTargets
        Where the gradients go.
    """
    sources = (problem.query, problem.key, problem.value)
    summed = [target.shape != x.shape for target, x in zip(targets[:3], sources, strict=True)]
    empty = 0 in (*problem.query.shape[:-1], problem.key.shape[-2])
    for target, added in zip(targets, (*summed, True, True), strict=True):
        if target is not None and (added or empty):
            target[...] = 0
    if empty:
        return
    views = [
        None if target is None or x is None else spread(target, x.shape)
        for target, x in zip(targets[:4], (*sources, problem.bias), strict=True)
    ]
    given = (*sources, problem.bias, output, grad_output, grad_lse, *views)
    for chunk in batches(problem.query.shape[:-3], given):
        for part in parts(chunk[:3], chunk[7:10]):
            own = [None if x is None else x[part] for x in chunk]
            _call(problem, own, summed, targets.projection)


def _call(
    problem: LinearProblem, arrays: list[Any], summed: list[bool], projection: Array | None
) -> None:
    """Call the kernel for one batch axis and add what it cannot write in place."""
    given, views = arrays[:7], arrays[7:]
    made = [
        np.empty(x.shape, x.dtype) if apart else view
        for x, view, apart in zip(given[:3], views[:3], summed, strict=True)
    ]
    made.append(None if views[3] is None else np.empty(given[3].shape, given[3].dtype))
    arguments: list[Any] = [*given, *made, projection, problem.causal, problem.features]
    arguments.append(_config.current_threads())
    _kernels.linear_backward.attend_backward(*arguments)
    for part, view, apart in zip(made, views, (*summed, views[3] is not None), strict=True):
        if apart:
            add_summed(view, part)

"""The gradient of one softmax-attention problem, summed over the axes that broadcast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from . import _config, _kernels
from ._arrays import Array, cast, compute_dtype
from ._problem import Problem, batches

__all__ = ["Targets", "add_summed", "differentiate", "new_target", "parts", "spread"]

# Numbers of one array's gradient before its sum over batch entries that share the array.
_UNSUMMED = 1 << 22


class Targets(NamedTuple):
    """Where the gradients of a problem go; None where one is not wanted.

    Each has the axes of what it is the gradient of in the :class:`Problem`, with length 1
    along those axes that its caller's array is broadcast over; see :func:`new_target`.
    """

    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    mask: Array | None = None
    slopes: Array | None = None
    sinks: Array | None = None


def new_target(x: Array, shape: tuple[int, ...]) -> Array:
    """Return an array for the gradient of `x`, which was `shape` before it was broadcast.

    It has the dtype of `x`, or where it is summed over an axis the compute dtype.
    """
    own = (1,) * (x.ndim - len(shape)) + shape
    return np.empty(own, x.dtype if own == x.shape else compute_dtype(x.dtype))


def differentiate(
    problem: Problem,
    output: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None,
    targets: Targets,
) -> None:
    """Write the gradient of ``sum(output * grad_output) + sum(lse * grad_lse)``.

    Parameters
    ----------
    problem : Problem
        What was computed.
    output : ndarray, shape (..., H, Lq, Dv)
        What :meth:`Problem.attend` wrote, as is `lse`.
    lse : ndarray, shape (..., H, Lq)
    grad_output : ndarray, shape (..., H, Lq, Dv)
        Of the problem's storage dtype, with contiguous rows.
    grad_lse : ndarray, shape (..., H, Lq), or None
        Of the compute dtype.
    targets : Targets
        Where the gradients go.
    """
    assert problem.value is not None
    sources = (problem.query, problem.key, problem.value)
    summed = [
        target is not None and target.shape != x.shape
        for target, x in zip(targets[:3], sources, strict=True)
    ]
    empty = 0 in problem.query.shape[:-1]
    for target, added in zip(targets, (*summed, True, True, True), strict=True):
        if target is not None and (added or empty):
            target[...] = 0
    if empty:
        return
    given = (*sources, output, lse, grad_output, grad_lse)
    views = [
        None if target is None or x is None else spread(target, x.shape)
        for target, x in zip(targets[:4], (*sources, problem.mask), strict=True)
    ]
    chunks = batches(problem.query.shape[:-3], (problem.mask, *given, *views))
    with np.errstate(all="ignore"):
        for chunk in chunks:
            for part in parts(chunk[1:4], chunk[8:11]):
                mask, *rest = (None if x is None else x[part] for x in chunk)
                _call(problem, mask, rest, summed, targets)


def spread(target: Array, shape: tuple[int, ...]) -> Array:
    """View a target in a shape that it is broadcast to, for writing."""
    if target.shape == shape:
        return target
    strides = [
        0 if own != length else stride
        for own, length, stride in zip(target.shape, shape, target.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(target, shape, strides)


def add_summed(view: Array, part: Array) -> None:
    """Add a gradient to what :func:`spread` made of a target, summed as that is."""
    total = cores(view)
    axes = tuple(i for i in range(total.ndim) if total.shape[i] != part.shape[i])
    wide = cast(part, total.dtype)
    total += wide.sum(axis=axes, keepdims=True) if axes else wide


def cores(view: Array) -> Array:
    """View every number of a target once."""
    return view[tuple(slice(0, 1 if stride == 0 else None) for stride in view.strides)]


def parts(sources: list[Any], views: list[Array | None]) -> Iterator[slice]:
    """Cut the batch axis so that what is summed over it stays small."""
    batch = len(sources[0])
    step = batch
    for x, view in zip(sources, views, strict=True):
        if view is not None and view.strides[0] == 0 and x.size > _UNSUMMED:
            step = min(step, max(1, _UNSUMMED * batch // x.size))
    for start in range(0, batch, step):
        yield slice(start, start + step)


def _call(
    problem: Problem,
    mask: Array | None,
    arrays: list[Any],
    summed: list[bool],
    targets: Targets,
) -> None:
    """Call the kernel for one batch axis and add what it cannot write in place."""
    given, views, bias_view = arrays[:7], arrays[7:10], arrays[10]
    own = [
        np.empty(x.shape, x.dtype) if apart else view
        for x, view, apart in zip(given[:3], views, summed, strict=True)
    ]
    bias = None if bias_view is None else cores(bias_view)
    added = bias
    if bias is not None and not bias.flags.c_contiguous:
        added = np.zeros(bias.shape, bias.dtype)
    per_head = [
        None if x is None else np.empty_like(x) for x in (targets.slopes, targets.sinks)
    ]
    arguments: list[Any] = [*given, *own, added, *per_head, problem.spec(mask)]
    arguments.append(_config.current_threads())
    _kernels.softmax_backward.attend_backward(*arguments)
    for part, view, apart in zip(own, views, summed, strict=True):
        if apart:
            add_summed(view, part)
    if bias is not None and added is not bias:
        bias += added
    for target, part in zip((targets.slopes, targets.sinks), per_head, strict=True):
        if target is not None:
            target += part

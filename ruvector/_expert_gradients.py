"""The gradient of a mixture of experts, the choice of experts being fixed.

With the shares p of a query's experts, their outputs y and the gradient G of
``o = sum_e p_e y_e``::

    dy_e = p_e G        dp_e = G . y_e        dz = p * (dp - G . o)

with z the router's logits of the chosen experts. An expert differentiates its own problem, and
then what it multiplies queries and keys by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ._arrays import FLOAT64, Array, cast, compute_dtype, contiguous_rows
from ._backward import Targets, differentiate
from ._ball_backward import BallTargets, differentiate_midpoint
from ._ball_problem import BallProblem
from ._experts import Routed, Visit, project, repeats, transformed
from ._features import LinearProblem
from ._kernels import routing
from ._linear_backward import LinearTargets, differentiate_linear
from ._problem import Problem

__all__ = ["MixtureTargets", "differentiate_mixture"]


class MixtureTargets(NamedTuple):
    """Where the gradients of a mixture are added, in the compute dtype.

    Those of a memory that serves the whole batch have a first axis of length 1. The mask's has
    four axes, of length 1 where one mask serves all; None without a float mask.
    """

    query: Array
    keys: Array
    values: Array
    mask: Array | None
    parameters: dict[str, Array]


class _Gradients(NamedTuple):
    """Those of one visit: of a block's arrays, summed where they repeat, and of the weights."""

    query: Array
    keys: Array
    values: Array
    mask: Array | None
    query_weight: Array
    key_weight: Array
    projection: Array | None


def differentiate_mixture(
    routed: Routed,
    types: Sequence[str],
    visits: Sequence[Visit],
    query: Array,
    router: Array,
    grad_output: Array,
    grad_loss: Array | None,
    targets: MixtureTargets,
) -> None:
    """Add the gradients of what :func:`mix` computed, and of a loss on the routing.

    Parameters
    ----------
    routed : Routed
        Where queries went.
    types : sequence of str
        The type of each expert.
    visits : sequence of Visit
        What :func:`mix` left.
    query : ndarray, shape (B, m, dim)
    router : ndarray, shape (N, dim)
        The router's weight.
    grad_output : ndarray, shape (B, m, dim_v)
        Gradient of the output, in the compute dtype.
    grad_loss : ndarray of float64, shape (R, N), or None
        Gradient of a loss in the logits.
    targets : MixtureTargets
        Where gradients go.
    """
    dtype = grad_output.dtype
    shares = routing.mixture_weights(routed.logits, routed.choice)
    grad_shares = np.zeros(shares.shape)
    for visit in visits:
        block = visit.block
        gradient = grad_output[block.where]
        answer = cast(block.listed(visit.answer.output), dtype)
        place = visit.rows, visit.positions
        grad_shares[place] = np.einsum("rd,rd->r", gradient, answer, dtype=FLOAT64)
        own = shares[place].astype(dtype)[:, np.newaxis] * gradient
        made = _DIFFERENTIATE[types[visit.expert]](visit, block.unlisted(own))
        _add(visit, made, targets)
    if not len(shares):
        return
    logits = np.zeros(routed.logits.shape) if grad_loss is None else grad_loss
    routing.mixture_gradient(shares, grad_shares, routed.choice, logits)
    _add_router(routed, query, router, logits, targets)


def _add_router(
    routed: Routed, query: Array, weight: Array, grad_logits: Array, targets: MixtureTargets
) -> None:
    """Go on from the logits to queries and the router's weight, in float64."""
    rows = cast(query.reshape(-1, query.shape[-1]), FLOAT64)
    seen = rows if routed.jitter is None else rows * routed.jitter
    targets.parameters["router.weight"] += _outer(grad_logits, seen, FLOAT64)
    gradient = np.empty(rows.shape)
    project(grad_logits, np.ascontiguousarray(cast(weight, FLOAT64).T), gradient)
    if routed.jitter is not None:
        gradient *= routed.jitter
    targets.query[...] += gradient.reshape(query.shape)


def _add(visit: Visit, made: _Gradients, targets: MixtureTargets) -> None:
    block, name = visit.block, f"experts.{visit.expert}"
    targets.query[block.where] += block.listed(made.query)
    for target, part in ((targets.keys, made.keys), (targets.values, made.values)):
        _add_entries(target, block.entries, part)
    if targets.mask is not None and made.mask is not None:
        by_memory = len(targets.mask) == 1 or block.entries is not None
        if by_memory and targets.mask.shape[2] == made.mask.shape[2] == 1:
            _add_entries(targets.mask, block.entries, made.mask)
        else:
            index = [
                np.minimum(place, length - 1)
                for place, length in zip(block.where, targets.mask.shape[::2], strict=True)
            ]
            np.add.at(targets.mask[:, 0], tuple(index), block.listed(made.mask[:, 0]))
    targets.parameters[f"{name}.query.weight"] += made.query_weight
    targets.parameters[f"{name}.key.weight"] += made.key_weight
    if made.projection is not None:
        targets.parameters["projection"] += made.projection


def _add_entries(target: Array, entries: Array | None, part: Array) -> None:
    """Add the gradients of memories to those of the batch."""
    if len(target) == 1:
        target += part.sum(axis=0, keepdims=True)
    else:
        target[entries] += part


def _standard(visit: Visit, gradient: Array) -> _Gradients:
    block, weights, answer = visit.block, visit.weights, visit.answer
    problem, dtype = answer.problem, gradient.dtype
    assert isinstance(problem, Problem)
    assert problem.value is not None
    assert answer.lse is not None
    targets = Targets(*(_new(x) for x in (problem.query, problem.key, problem.value)))
    targets = targets._replace(mask=_new_mask(block.mask))
    storage = problem.query.dtype
    differentiate(
        problem,
        answer.output[:, np.newaxis],
        answer.lse,
        contiguous_rows(gradient, storage)[:, np.newaxis],
        None,
        targets,
    )
    query, keys, values = (cast(_required(x)[:, 0], dtype) for x in targets[:3])
    if not block.few_queries:
        return _through_weights(visit, query, keys, values, targets.mask)
    # The keys' weight was multiplied into the query.
    first = transformed(block.query, weights.query, dtype)
    grad_first = transformed(query, weights.key, dtype)
    return _Gradients(
        transformed(grad_first, weights.query.T, dtype),
        keys,
        values,
        targets.mask,
        _outer(grad_first, block.query, dtype),
        _outer(first, query, dtype),
        None,
    )


def _linear(visit: Visit, gradient: Array) -> _Gradients:
    answer = visit.answer
    problem = answer.problem
    assert isinstance(problem, LinearProblem)
    query, keys, values = (_new(x) for x in (problem.query, problem.key, problem.value))
    grad_mask = _new_mask(visit.block.mask)
    projection = np.zeros(problem.features.projection.shape)
    differentiate_linear(
        problem,
        answer.output[:, np.newaxis],
        gradient[:, np.newaxis],
        None,
        LinearTargets(
            query,
            keys,
            values,
            None if grad_mask is None else grad_mask[:, 0, 0],
            projection,
        ),
    )
    made = _through_weights(visit, query[:, 0], keys[:, 0], values[:, 0], grad_mask)
    return made._replace(projection=projection)


def _hyperbolic(visit: Visit, gradient: Array) -> _Gradients:
    block, answer = visit.block, visit.answer
    problem = answer.problem
    assert isinstance(problem, BallProblem)
    targets = BallTargets(None, tuple(_new(x) for x in problem.curved), _new_mask(block.mask))
    differentiate_midpoint(
        problem,
        _required(answer.state),
        _required(answer.lse),
        (None, gradient[:, np.newaxis]),
        None,
        targets,
        to_tangent=False,
        parameters=False,
    )
    query, keys, values = (x[:, 0] for x in targets.curved)
    return _through_weights(visit, query, keys, values, targets.mask)


_DIFFERENTIATE = {"standard": _standard, "hyperbolic": _hyperbolic, "linear": _linear}


def _through_weights(
    visit: Visit, query: Array, keys: Array, values: Array, mask: Array | None
) -> _Gradients:
    """Go on from an expert's multiplied queries and keys to what was multiplied."""
    block, weights, dtype = visit.block, visit.weights, query.dtype
    return _Gradients(
        transformed(query, weights.query.T, dtype),
        transformed(keys, weights.key.T, dtype),
        values,
        mask,
        _outer(query, block.query, dtype),
        _outer(keys, block.keys[: len(keys)], dtype),
        None,
    )


def _new(x: Array, shared: tuple[int, ...] = (0,)) -> Array:
    """Return an array for a gradient, of length 1 along axes of `shared` that `x` repeats.

    Along the others each entry has a gradient, even where the caller repeats one.
    """
    shape = list(x.shape)
    for axis in shared:
        if repeats(x, axis):
            shape[axis] = 1
    wide = tuple(shape) != x.shape
    return np.empty(shape, compute_dtype(x.dtype) if wide else x.dtype)


def _new_mask(mask: Array | None) -> Array | None:
    """Return an array for the gradient of a mask; None where it has none."""
    return None if mask is None or mask.dtype == np.bool_ else _new(mask, (0, 2))


def _required(x: Array | None) -> Array:
    assert x is not None
    return x


def _outer(left: Array, right: Array, dtype: np.dtype[Any]) -> Array:
    """Return the sum of the outer products of rows ``(..., length, width)``.

    Nothing comes of a row that is 0 on the left, whatever is on the right: hidden keys.
    """
    idle = ~left.any(axis=-1, keepdims=True)
    if idle.any():
        right = np.where(idle, 0, cast(right, dtype))
    rows, columns = (
        np.ascontiguousarray(cast(x, dtype).reshape(-1, x.shape[-1]).T) for x in (left, right)
    )
    result = np.empty((len(rows), len(columns)), dtype)
    project(rows, columns, result)
    return result

"""The gradient of one attention problem with a part in a Poincare ball."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np

from . import _config, _kernels
from ._arrays import FLOAT64, Array, cast, contiguous_rows
from ._ball_problem import BallProblem

__all__ = ["BallTargets", "Parameters", "differentiate_frechet", "differentiate_midpoint"]

# Numbers of one array's gradient before its sum over batch entries that share the array.
_UNSUMMED = 1 << 22
# Weights that are held at a time where means were sought under them.
_WEIGHTS = 1 << 20


class BallTargets(NamedTuple):
    """Where the gradients of a :class:`BallProblem` go.

    Attributes
    ----------
    flat : tuple of ndarray, or None
        Those of query, key and value outside of the ball, with the axes of the problem's
        arrays. The first has length 1 where an array serves the whole batch; it is then of
        the compute dtype, else of the array's own.
    curved : tuple of ndarray
        The same of the part in the ball.
    mask : ndarray or None
        That of a float mask, with four axes, of length 1 where it is summed; of the compute
        dtype. None where not wanted.
    """

    flat: tuple[Any, ...] | None
    curved: tuple[Any, ...]
    mask: Array | None = None


class Parameters(NamedTuple):
    """The gradients of the numbers of a problem; 0 where they were not wanted."""

    scale: float
    distance_scale: float
    curvature: float


def differentiate_midpoint(
    problem: BallProblem,
    state: Array,
    lse: Array,
    grad_output: tuple[Array | None, Array],
    grad_lse: Array | None,
    targets: BallTargets,
    *,
    to_tangent: bool,
    parameters: bool,
) -> Parameters:
    """Write the gradient of ``sum(output * grad_output) + sum(lse * grad_lse)``.

    Parameters
    ----------
    problem : BallProblem
        What was computed.
    state, lse : ndarray, shapes (B, H, m, Dv + Dhv + 1) and (B, H, m)
        What :meth:`BallProblem.attend` returned.
    grad_output : tuple of ndarray, shapes (B, H, m, Dv) and (B, H, m, Dhv)
        Gradients of the averages outside of the ball (None without such a part), and of the
        midpoints that ``hyperbolic.midpoint`` made of the rest.
    grad_lse : ndarray, shape (B, H, m), or None
        Of the compute dtype.
    targets : BallTargets
        Where the gradients go.
    to_tangent : bool
        Whether the midpoints were mapped to the tangent space at the origin.
    parameters : bool
        Whether the numbers of the problem have wanted gradients.
    """
    flat, curved = grad_output
    width = 0 if flat is None else flat.shape[3]
    gradient = np.empty(state.shape, FLOAT64)
    if flat is not None:
        gradient[..., :width] = flat
    averages = np.ascontiguousarray(state[..., width:])
    own = np.empty((prod(state.shape[:3]), averages.shape[3]), FLOAT64)
    averages = averages.reshape(own.shape)
    midpoints = np.ascontiguousarray(curved).reshape(len(own), curved.shape[3])
    curvature = _kernels.hyperbolic.midpoint_backward(
        averages, midpoints, own, problem.ball.curvature, to_tangent
    )
    gradient[..., width:] = own.reshape(*state.shape[:3], own.shape[1])
    total = _Total(problem, targets, parameters, curvature)
    for part in _parts(problem, targets):
        total.add(
            part.of(problem),
            part.targets(targets),
            {
                "state": part.rows(state),
                "lse": part.rows(lse),
                "grad_state": part.rows(gradient),
                "grad_lse": None if grad_lse is None else part.rows(grad_lse),
            },
        )
    return total.parameters()


def differentiate_frechet(
    problem: BallProblem,
    means: Array,
    lse: Array,
    grad_output: Array,
    grad_lse: Array | None,
    targets: BallTargets,
    *,
    parameters: bool,
) -> Parameters:
    """Write the gradient of ``sum(means * grad_output) + sum(lse * grad_lse)``.

    Parameters
    ----------
    problem : BallProblem
        A problem with one head, all in the ball.
    means : ndarray, shape (B, m, Dhv)
        What :meth:`BallProblem.frechet_means` wrote.
    grad_output : ndarray, shape (B, m, Dhv)
        Their gradients.
    lse, grad_lse, targets, parameters
        As in :func:`differentiate_midpoint`.
    """
    ball, (_, keys, values) = problem.ball, problem.curved
    batch, _, n, width = values.shape
    total = _Total(problem, targets, parameters, added=True)
    of_keys, of_points = np.zeros((1, *keys.shape[1:]), FLOAT64), np.zeros((n, width), FLOAT64)
    stored = points = of_points
    step = max(1, _WEIGHTS // max(1, n))
    for b in range(batch):
        if b == 0 or values.strides[0]:
            stored = np.ascontiguousarray(cast(values[b, 0], FLOAT64))
            points = np.empty_like(stored)
            _kernels.hyperbolic.to_ball(stored, points, ball.curvature, ball.tangent)
        for start in range(0, means.shape[1], step):
            part = _Part(slice(b, b + 1), slice(start, min(start + step, means.shape[1])))
            own = part.of(problem)
            weights = own.weights()
            of_weights = np.empty(weights.shape, FLOAT64)
            total.curvature += _kernels.hyperbolic.frechet_mean_backward(
                points,
                weights[0, 0],
                means[b, part.queries],
                grad_output[b, part.queries],
                of_points,
                of_weights[0, 0],
                ball.curvature,
            )
            query = part.rows(targets.curved[0])
            total.add(
                own,
                BallTargets(None, (query, of_keys, None), part.mask(targets.mask)),
                {
                    "lse": part.rows(lse),
                    "grad_lse": None if grad_lse is None else part.rows(grad_lse),
                    "grad_weights": of_weights,
                },
            )
        if len(targets.curved[1]) > 1 or b == batch - 1:
            _deliver(of_keys[0], targets.curved[1], b)
            of_keys[...] = 0
        if len(targets.curved[2]) > 1 or b == batch - 1:
            of_rows = np.empty_like(stored)
            total.curvature += _kernels.hyperbolic.to_ball_backward(
                stored, of_points, of_rows, ball.curvature, ball.tangent
            )
            _deliver(of_rows[np.newaxis], targets.curved[2], b)
            of_points[...] = 0
    return total.parameters()


def _deliver(gradient: Array, target: Array, entry: int) -> None:
    """Write what was summed for a batch entry, or for all of them."""
    target[entry if len(target) > 1 else 0] = contiguous_rows(gradient, target.dtype)


class _Part(NamedTuple):
    """Some queries of some batch entries."""

    entries: slice
    queries: slice = slice(None)

    def rows(self, x: Array) -> Array:
        """View their part of an array ``(B, H, m, ...)``."""
        return x[self.entries, :, self.queries]

    def of(self, problem: BallProblem) -> BallProblem:
        """Return their part of a problem."""
        return problem.part(self.entries, self.queries)

    def mask(self, target: Array | None) -> Array | None:
        """View their part of the gradient of a mask."""
        if target is None:
            return None
        entries = self.entries if len(target) > 1 else slice(None)
        return target[entries, :, self.queries if target.shape[2] > 1 else slice(None)]

    def targets(self, targets: BallTargets) -> BallTargets:
        """View their part of the targets."""
        flat, curved = (
            tuple(x if len(x) == 1 else x[self.entries] for x in arrays)
            for arrays in (targets.flat or (), targets.curved)
        )
        return BallTargets(flat or None, curved, self.mask(targets.mask))


def _parts(problem: BallProblem, targets: BallTargets) -> Iterator[_Part]:
    """Cut the batch so that what is summed over it stays small."""
    batch = len(problem.curved[0])
    step = batch
    for x, target in zip(problem.curved[1:], targets.curved[1:], strict=True):
        if len(target) != batch and x.size > _UNSUMMED:
            step = min(step, max(1, _UNSUMMED * batch // x.size))
    for start in range(0, batch, max(1, step)):
        yield _Part(slice(start, min(start + step, batch)))


class _Total:
    """Calls the kernel part by part, and adds what it cannot write in place."""

    __slots__ = ("_apart", "_numbers", "_wanted", "curvature")

    def __init__(
        self,
        problem: BallProblem,
        targets: BallTargets,
        parameters: bool,
        curvature: float = 0.0,
        *,
        added: bool = False,
    ) -> None:
        batch = len(problem.curved[0])
        # Which memories' gradients are added up beside their targets.
        self._apart = [
            place > 0 and target is not None and (added or len(target) != batch)
            for arrays in (targets.flat or (None,) * 3, targets.curved)
            for place, target in enumerate(arrays)
        ]
        self._numbers = np.zeros(3)
        self._wanted = parameters
        self.curvature = curvature
        for target in (*(targets.flat or ()), *targets.curved, targets.mask):
            if target is not None:
                target[...] = 0

    def add(self, problem: BallProblem, targets: BallTargets, given: dict[str, Any]) -> None:
        """Compute the gradients of one part, and write or add them."""
        sources = (*(problem.flat or (None,) * 3), *problem.curved)
        wanted = (*(targets.flat or (None,) * 3), *targets.curved)
        if wanted[5] is None:
            sources = (*sources[:5], None)
        own = [
            np.empty(x.shape, FLOAT64) if apart and x is not None else target
            for x, target, apart in zip(sources, wanted, self._apart, strict=True)
        ]
        numbers = np.zeros(3) if self._wanted else None
        arguments: list[Any] = [
            *sources,
            given.get("state"),
            given["lse"],
            given.get("grad_state"),
            given["grad_lse"],
            given.get("grad_weights"),
            *own,
            targets.mask,
            numbers,
            problem.spec,
            problem.ball,
            _config.current_threads(),
        ]
        _kernels.softmax_backward.attend_ball_backward(*arguments)
        for part, target in zip(own, wanted, strict=True):
            if part is not None and target is not None and part is not target:
                target += part.sum(axis=0, keepdims=True) if len(target) < len(part) else part
        if numbers is not None:
            self._numbers += numbers

    def parameters(self) -> Parameters:
        """Return what was summed."""
        if not self._wanted:
            return Parameters(0.0, 0.0, 0.0)
        scale, distance_scale, curvature = self._numbers.tolist()
        return Parameters(scale, distance_scale, curvature + self.curvature)

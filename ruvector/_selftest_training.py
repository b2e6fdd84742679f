"""Optimisers against their formulas, for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .training import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from .training._optimizer import Optimizer

    Case = tuple[str, Any, Any, float]
    Float64 = NDArray[np.float64]

__all__ = ["optimizers"]

_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
_SIZES = (1, 7, 31, 33, 16_385)
_STEPS = 5
_RATE, _DECAY = 0.05, 0.1


def _sgd(x: Float64, gradients: list[Float64]) -> Float64:
    velocity = np.zeros_like(x)
    for gradient in gradients:
        slope = gradient + _DECAY * x
        velocity = 0.9 * velocity + slope
        x = x - _RATE * (slope + 0.9 * velocity)
    return x


def _adam(x: Float64, gradients: list[Float64], decoupled: bool) -> Float64:
    mean = square = peak = np.zeros_like(x)
    for t, gradient in enumerate(gradients, 1):
        slope = gradient if decoupled else gradient + _DECAY * x
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        peak = square if decoupled else np.maximum(peak, square)
        update = mean / (1 - 0.9**t) / (np.sqrt(peak / (1 - 0.99**t)) + 1e-8)
        x = x - _RATE * update - (_RATE * _DECAY * x if decoupled else 0)
    return x


def optimizers(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of parameters after a few steps, and of clipped gradients."""
    for dtype, allowed in _TOLERANCE.items():
        for size in _SIZES:
            start = rng.standard_normal(size).astype(dtype)
            gradients = [rng.standard_normal(size).astype(dtype) for _ in range(_STEPS)]
            wide = [gradient.astype(np.float64) for gradient in gradients]
            x = start.astype(np.float64)
            made: tuple[tuple[Optimizer, Float64], ...] = (
                (SGDOptimizer(_RATE, 0.9, nesterov=True, weight_decay=_DECAY), _sgd(x, wide)),
                (
                    AdamOptimizer(_RATE, 0.9, 0.99, weight_decay=_DECAY, amsgrad=True),
                    _adam(x, wide, False),
                ),
                (AdamWOptimizer(_RATE, _DECAY, 0.9, 0.99), _adam(x, wide, True)),
            )
            for optimizer, expected in made:
                params = start.copy()
                for gradient in gradients:
                    optimizer.step(gradient, params=params)
                yield f"{type(optimizer).__name__}, {dtype}, {size}", params, expected, allowed
            norm = np.sqrt(sum((gradient**2).sum() for gradient in wide))
            yield f"norm, {dtype}, {size}", clip_grad_norm(gradients, norm / 2), norm, allowed
            clipped = [gradient / 2 for gradient in wide]
            yield f"clipped, {dtype}, {size}", np.stack(gradients), np.stack(clipped), allowed

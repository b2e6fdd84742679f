"""Optimisers written out in float64, one array, as their papers have them."""

from __future__ import annotations

import numpy as np


def sgd(
    params, gradients, rates, *, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0
):
    """The parameters after each step (Sutskever et al. 2013, as torch arranges it)."""
    x = np.array(params, np.float64)
    velocity, trail = None, []
    for gradient, rate in zip(gradients, rates, strict=True):
        slope = gradient + weight_decay * x
        if momentum:
            velocity = (
                slope.copy()
                if velocity is None
                else momentum * velocity + (1 - dampening) * slope
            )
            slope = slope + momentum * velocity if nesterov else velocity
        x = x - rate * slope
        trail.append(x)
    return trail


def adam(
    params,
    gradients,
    rates,
    *,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    weight_decay=0.0,
    amsgrad=False,
    decoupled=False,
):
    """The parameters after each step (algorithm 1 of Kingma and Ba, with corrected moments)."""
    x = np.array(params, np.float64)
    mean, square, peak, trail = np.zeros_like(x), np.zeros_like(x), np.zeros_like(x), []
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        slope = gradient if decoupled else gradient + weight_decay * x
        mean = beta1 * mean + (1 - beta1) * slope
        square = beta2 * square + (1 - beta2) * slope**2
        peak = np.maximum(peak, square)
        corrected = (peak if amsgrad else square) / (1 - beta2**t)
        update = mean / (1 - beta1**t) / (np.sqrt(corrected) + epsilon)
        x = x - rate * update - (rate * weight_decay * x if decoupled else 0)
        trail.append(x)
    return trail

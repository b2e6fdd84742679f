"""Options of the optimisers that the tests go through, under our names."""

from __future__ import annotations

import reference_optim

from ruvector.training import AdamOptimizer, AdamWOptimizer, SGDOptimizer

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}

CASES = [
    (SGDOptimizer, {}),
    (SGDOptimizer, {"weight_decay": 0.1}),
    (SGDOptimizer, {"momentum": 0.9}),
    (SGDOptimizer, {"momentum": 0.8, "weight_decay": 0.1}),
    (SGDOptimizer, {"momentum": 0.9, "dampening": 0.3}),
    (SGDOptimizer, {"momentum": 0.9, "dampening": 1.5, "weight_decay": 0.05}),
    (SGDOptimizer, {"momentum": 0.9, "nesterov": True}),
    (SGDOptimizer, {"momentum": 0.7, "nesterov": True, "weight_decay": 0.1}),
    (AdamOptimizer, {}),
    (AdamOptimizer, {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-3}),
    (AdamOptimizer, {"beta1": 0.0, "beta2": 0.5}),
    (AdamOptimizer, {"weight_decay": 0.1}),
    (AdamOptimizer, {"amsgrad": True, "beta2": 0.9}),
    (AdamOptimizer, {"amsgrad": True, "weight_decay": 0.1, "beta2": 0.9}),
    (AdamWOptimizer, {}),
    (AdamWOptimizer, {"weight_decay": 0.0}),
    (AdamWOptimizer, {"weight_decay": 0.3, "beta1": 0.8, "beta2": 0.99}),
    (AdamWOptimizer, {"amsgrad": True, "beta2": 0.9}),
]


def case_id(case):
    kind, options = case
    return "-".join([kind.__name__[: -len("Optimizer")], *map(str, options.items())])


def expected(kind, options, params, gradients, rates):
    """The trail of one array in float64."""
    if kind is SGDOptimizer:
        return reference_optim.sgd(params, gradients, rates, **options)
    if kind is AdamOptimizer:
        return reference_optim.adam(params, gradients, rates, **options)
    options = {"weight_decay": 0.01, **options}
    return reference_optim.adam(params, gradients, rates, decoupled=True, **options)


def rates(steps):
    """A rate that changes half-way."""
    return [0.02] * (steps // 2) + [0.005] * (steps - steps // 2)


def gradients_of(rng, shape, steps, dtype="float64"):
    return [rng.standard_normal(shape).astype(dtype) for _ in range(steps)]

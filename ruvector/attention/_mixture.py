"""The mixture of experts behind :class:`MoEAttention`: its configuration, router and routes."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arrays import Array, cast, compute_dtype, view
from .._checks import generator, real_type, settings
from .._expert_gradients import MixtureTargets, differentiate_mixture
from .._experts import EXPERT_TYPES, Routed, Visit, initial_parameters, mix, route
from .._kernels import routing
from ..errors import InvalidMaskError
from ._moe_config import MoEConfig
from ._moe_stats import RoutingStats, Tally
from ._parameters import Learned
from .base import Attention, Gradients, Inputs

__all__ = ["Mixture"]

_DEFAULT_SEED = 42


class Mixture(Learned, Attention):
    """Queries that are routed to experts, which are counted."""

    _fields = (
        "dim",
        "num_experts",
        "top_k",
        "expert_capacity",
        "load_balance_weight",
        "aux_loss_weight",
        "jitter_noise",
        "expert_types",
    )

    def __init__(
        self,
        config: MoEConfig | None = None,
        *,
        seed: int | None = None,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
        **fields: Any,
    ) -> None:
        chosen = settings(MoEConfig, config, fields)
        super().__init__(chosen.dim)
        self._settings = chosen
        types = chosen.expert_types or islice(cycle(EXPERT_TYPES), chosen.num_experts)
        self._expert_types = tuple(types)
        self._rng = rng = generator(seed, rng, _DEFAULT_SEED)
        self._parameters = initial_parameters(
            self._dim, self._expert_types, rng, real_type(dtype, "dtype")
        )
        self.reset_routing_stats()

    @property
    def num_experts(self) -> int:
        """Number of experts."""
        return self._settings.num_experts

    @property
    def top_k(self) -> int:
        """How many experts answer a query."""
        return self._settings.top_k

    @property
    def expert_capacity(self) -> float:
        """How many queries an expert takes in training, as a multiple of its even share."""
        return self._settings.expert_capacity

    @property
    def load_balance_weight(self) -> float:
        """Factor on the loss for unequal use of the experts."""
        return self._settings.load_balance_weight

    @property
    def aux_loss_weight(self) -> float:
        """Factor on the mean square of the log-sum-exp of the router's logits."""
        return self._settings.aux_loss_weight

    @property
    def jitter_noise(self) -> float:
        """How far the router's view of a query is changed in training."""
        return self._settings.jitter_noise

    @property
    def expert_types(self) -> tuple[str, ...]:
        """The type of each expert."""
        return self._expert_types

    @property
    def expert_usage(self) -> Array:
        """The same as :meth:`get_expert_usage`."""
        return self.get_expert_usage()

    @property
    def routing_stats(self) -> RoutingStats:
        """What has been routed since the last reset."""
        return self._tally.stats

    def get_expert_usage(self) -> Array:
        """Return how much each expert was used since :meth:`reset_routing_stats`.

        Returns
        -------
        ndarray of float64, shape (num_experts,)
            Fractions of all routings of a query to an expert; 0 where there were none.
        """
        routings = self.routing_stats.routings
        return np.asarray(routings / max(1, routings.sum()))

    def reset_routing_stats(self) -> None:
        """Start the statistics of routing anew."""
        self._tally = Tally(self.num_experts)

    def _attend(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        mask: ArrayLike | None,
        training: bool,
        return_weights: bool,
        out: Array | None,
    ) -> tuple[Any, Routed]:
        inputs = Inputs(query, keys, values, self._dim)
        checked = None if mask is None else self._checked_mask(inputs, mask)
        destination, work = inputs.output(out, self._work_dtype(inputs), (checked,))
        routed = self._route(inputs, training)
        _, weights = self._evaluate(inputs, checked, work, False, return_weights, routed=routed)
        result = inputs.result(destination, None, weights)
        self._tally.add(routed.wanted, routed.choice)
        return result, routed

    def _attend_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        grad_loss: float | None,
        mask: ArrayLike | None,
        training: bool,
        return_weights: bool,
        out: Array | None,
    ) -> tuple[Any, Routed, Gradients]:
        inputs = Inputs(query, keys, values, self._dim)
        checked = None if mask is None else self._checked_mask(inputs, mask)
        work_dtype = self._work_dtype(inputs)
        gradient = inputs.checked_gradient(grad_output, work_dtype)
        destination, work = inputs.output(out, work_dtype, (checked, gradient))
        own, mask_gradient = inputs.new_gradients(), inputs.new_mask_gradient(checked)
        inputs.keys = _unrepeated(inputs.keys, own[1], 0)
        inputs.values = _unrepeated(inputs.values, own[2], 0)
        if checked is not None and mask_gradient is not None:
            for axis in (0, 2):
                checked = _unrepeated(checked, mask_gradient, axis)
            mask_gradient[...] = 0
        routed = self._route(inputs, training)
        visits: list[Visit] = []
        _, weights = self._evaluate(
            inputs, checked, work, False, return_weights, routed=routed, visits=visits
        )
        query_gradient, key_gradient, value_gradient = (
            np.zeros(x.shape, work_dtype) for x in own
        )
        targets = MixtureTargets(
            query_gradient,
            key_gradient,
            value_gradient,
            mask_gradient,
            {name: np.zeros(x.shape, work_dtype) for name, x in self._parameters.items()},
        )
        differentiate_mixture(
            routed,
            self._expert_types,
            visits,
            inputs.query,
            self._parameters["router.weight"],
            gradient,
            None if grad_loss is None else self._loss_gradient(routed, grad_loss),
            targets,
        )
        result = inputs.result(destination, None, weights)
        self._tally.add(routed.wanted, routed.choice)
        learned = {
            name: cast(x, self._parameters[name].dtype)
            for name, x in targets.parameters.items()
        }
        gradients = Gradients(*targets[:4], parameters=learned)
        return result, routed, inputs.shaped_gradients(gradients)

    def _loss(self, routed: Routed) -> float:
        return routing.auxiliary_loss(
            routed.logits, routed.wanted, self.load_balance_weight, self.aux_loss_weight
        )

    def _loss_gradient(self, routed: Routed, gradient: float) -> Array:
        """Return the gradient in the logits of what :meth:`_loss` returns."""
        return routing.auxiliary_gradient(
            routed.logits,
            routed.wanted,
            gradient * self.load_balance_weight,
            gradient * self.aux_loss_weight,
        )

    def _checked_mask(self, inputs: Inputs, mask: ArrayLike) -> Array:
        checked = inputs.checked_mask(mask)
        if "linear" in self._expert_types:
            shape = view(mask, "mask")[0].shape
            if len(shape) != 1:
                raise InvalidMaskError(
                    f"mask must have shape ({inputs.keys.shape[1]},), the same keys for every "
                    f"query, where there is a linear expert, got shape {shape}"
                )
        return checked

    def _work_dtype(self, inputs: Inputs) -> np.dtype[Any]:
        router = self._parameters["router.weight"]
        return np.result_type(router, compute_dtype(inputs.query.dtype))

    def _route(self, inputs: Inputs, training: bool) -> Routed:
        config = self._settings
        return route(
            inputs.query,
            self._parameters["router.weight"],
            self._work_dtype(inputs),
            config.top_k,
            expert_capacity=config.expert_capacity if training else None,
            jitter=config.jitter_noise if training else 0.0,
            rng=self._rng,
        )

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[None, Array | None]:
        routed: Routed = options.get("routed") or self._route(inputs, False)
        weights = None
        if return_weights:
            batch, m, _ = inputs.query.shape
            weights = np.empty((batch, 1, m, inputs.keys.shape[1]), out.dtype)
        mix(
            routed,
            self._expert_types,
            self._parameters,
            inputs.query,
            inputs.keys,
            inputs.values,
            mask,
            out,
            weights,
            options.get("visits"),
        )
        return None, weights


def _unrepeated(x: Array, target: Array, axis: int) -> Array:
    """Copy what a caller repeats along an axis on which each entry has its own gradient."""
    return np.array(x) if target.shape[axis] > 1 and x.strides[axis] == 0 else x

"""A mixture of attention experts: each query is answered by the few that suit it best."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arrays import Array, compute_dtype, view
from .._checks import flag, integer, one_of, settings
from .._experts import EXPERT_TYPES, Routed, initial_parameters, mix, route
from .._kernels import routing
from ..errors import InvalidConfigError, InvalidMaskError
from ._moe_config import MoEConfig
from ._moe_stats import RoutingStats, Tally
from ._parameters import Learned
from .base import Attention, Inputs

__all__ = ["MoEAttention", "MoEConfig", "RoutingStats"]

_DEFAULT_SEED = 42


class MoEAttention(Learned, Attention):
    r"""Attention by a mixture of experts, of which each query is answered by a few.

    A router scores the experts for a query; the `top_k` best attend, and their outputs are
    averaged by the softmax of their scores:

    .. math::

        z = W_r q, \qquad
        o = \sum_{e \in \mathrm{top}_k(z)}
        \frac{\exp z_e}{\sum_{f \in \mathrm{top}_k(z)} \exp z_f}\;
        \mathrm{expert}_e(W_{q,e}\, q,\; W_{k,e} K,\; V)

    An expert is of one of three types: ``"standard"``, scaled dot-product attention with one
    head; ``"hyperbolic"``, :class:`HyperbolicAttention` of curvature 1 with the midpoint,
    which reads its vectors as points of the ball; and ``"linear"``,
    :class:`LinearAttention` with ``2 * dim`` features.

    Parameters
    ----------
    config : MoEConfig, optional
        The configuration; without it, its fields are given as keywords.
    seed : int, optional
        Seed of the initial weights and of the jitter; 42 without `rng`.
    rng : numpy.random.Generator, optional
        Where both come from instead.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters. Calls compute in it, or in that of their arrays if that is
        wider.
    **fields
        The fields of :class:`MoEConfig`.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain, or both a config and fields, or both `seed` and
        `rng` are given.

    Notes
    -----
    Parameters are ``router.weight`` (num_experts, dim), and ``experts.i.query.weight`` and
    ``experts.i.key.weight`` (dim, dim) for expert i. Those of the experts start as the
    identity plus noise of standard deviation 0.02, so that no two experts are the same
    function. Linear experts share a ``projection`` (2 dim, dim), at first that of
    ``LinearAttention(dim, 2 * dim)``.

    Queries are grouped by expert, and each expert runs once a call, over the queries that are
    routed to it. A standard expert with fewer queries than keys leaves the keys as they lie;
    the others multiply every key by their weights, ``n dim^2`` multiply-adds.

    Experts are compared by logits in float32; equal ones go to the lowest index. In plain
    calls nothing limits an expert, so a query's output does not depend on the others beside
    it. In training (see :meth:`compute_with_aux_loss`) an expert's capacity does.

    References
    ----------
    .. [1] W. Fedus, B. Zoph, N. Shazeer, "Switch Transformers: Scaling to Trillion Parameter
       Models with Simple and Efficient Sparsity", 2021, arXiv:2101.03961.
    .. [2] B. Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models",
       2022, arXiv:2202.08906.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.MoEAttention.simple(16, num_experts=4, top_k=2)
    >>> rng = np.random.default_rng(0)
    >>> keys = rng.standard_normal((100, 16), dtype=np.float32)
    >>> queries = rng.standard_normal((32, 16), dtype=np.float32)
    >>> attention.compute(queries, keys, keys).shape
    (32, 16)
    >>> attention.get_expert_usage().shape
    (4,)
    >>> output, loss = attention.compute_with_aux_loss(queries, keys, keys)
    >>> output.shape, 0.01 < loss < 0.02
    ((32, 16), True)
    """

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
        if rng is not None and seed is not None:
            raise InvalidConfigError("seed and rng must not both be given")
        if rng is None:
            seed = _DEFAULT_SEED if seed is None else integer(seed, "seed", 0)
            rng = np.random.default_rng(seed)
        if not isinstance(rng, np.random.Generator):
            raise InvalidConfigError(f"rng must be a numpy.random.Generator, got {rng!r}")
        self._rng = rng
        name = one_of(np.dtype(dtype).name, "dtype", ("float32", "float64"))
        self._parameters = initial_parameters(
            self._dim, self._expert_types, rng, np.dtype(name)
        )
        self.reset_routing_stats()

    @classmethod
    def simple(
        cls, dim: int, num_experts: int, top_k: int, *, seed: int | None = None
    ) -> MoEAttention:
        """Make a mixture with the defaults of :class:`MoEConfig`.

        Parameters
        ----------
        dim, num_experts, top_k
            As in :class:`MoEConfig`.
        seed : int, optional
            As for the class.

        Returns
        -------
        MoEAttention
        """
        return cls(MoEConfig(dim, num_experts, top_k), seed=seed)

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

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        training: bool = False,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from one query, several, or a batch of several.

        Parameters
        ----------
        query, keys, values, out
            As in :meth:`Attention.compute`.
        mask : array_like, shape (n,) or (m, n), optional
            As in :meth:`Attention.compute`; with a linear expert only of shape (n,).
        training : bool, default False
            Whether the router jitters and experts have a capacity, as in
            :meth:`compute_with_aux_loss`.
        return_lse : bool, default False
            Must be False: a mixture has no single log-sum-exp.
        return_weights : bool, default False
            Whether to return the weights of the keys, averaged over the experts of a query
            as their outputs are.

        Returns
        -------
        output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            In the query's dtype. A query that sees nothing gets 0.
        weights : ndarray, shape (n,), (m, n) or (B, m, n)
            Only with `return_weights`.

        Raises
        ------
        InvalidConfigError
            If `return_lse` is set.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        if return_lse:
            raise InvalidConfigError(
                "return_lse must be False: a mixture of experts has no single log-sum-exp"
            )
        result, _ = self._attend(
            query, keys, values, mask, flag(training, "training"), return_weights, out
        )
        return result

    def compute_with_aux_loss(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, float]:
        r"""Attend as in training, and return the loss that keeps the router in order.

        The router jitters, and an expert takes at most
        ``ceil(expert_capacity * m * top_k / num_experts)`` of the m queries of the call.
        Choices are served by rank, first choices before second ones, and within a rank by
        query; one that does not fit goes to that query's next best expert with room. The
        weights of the experts that a query got add up to 1; where there was none left its
        output is 0 (:attr:`routing_stats` counts such queries).

        Parameters
        ----------
        query, keys, values, mask, return_weights, out
            As in :meth:`compute`; the queries of a batch share one capacity.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute` returns.
        loss : float
            With N experts, P the softmax of the logits, and f the fraction of all choices,
            before capacity, that fell on an expert:

            .. math::

                \mathrm{load\_balance\_weight}\; N \sum_i f_i\, \mathrm{mean}(P_i)
                + \mathrm{aux\_loss\_weight}\; \mathrm{mean}(\mathrm{logsumexp}(z)^2)

            The first sum is 1 where all experts are used alike. 0 without queries.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        result, routed = self._attend(query, keys, values, mask, True, return_weights, out)
        loss = routing.auxiliary_loss(
            routed.logits, routed.wanted, self.load_balance_weight, self.aux_loss_weight
        )
        return result, loss

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
        )
        return None, weights

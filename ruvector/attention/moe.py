"""A mixture of attention experts: each query is answered by the few that suit it best."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from .._arrays import Array
from .._checks import finite, flag
from ..errors import InvalidConfigError
from ._mixture import Mixture
from ._moe_config import MoEConfig
from ._moe_stats import RoutingStats
from .base import Gradients

__all__ = ["MoEAttention", "MoEConfig", "RoutingStats"]


class MoEAttention(Mixture):
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
        return result, self._loss(routed)

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        grad_aux_loss: float | None = None,
        mask: ArrayLike | None = None,
        training: bool = False,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, mask, training, return_weights, out
            As in :meth:`compute`.
        grad_output : array_like, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            Gradient of the output.
        grad_lse, return_lse
            Must be left out: a mixture has no single log-sum-exp.
        grad_aux_loss : float, optional
            Gradient of the loss of :meth:`compute_with_aux_loss`, as a rule 1. With it the
            call is one of that method, in training.

        Returns
        -------
        result : ndarray or tuple
            What :meth:`compute` returns, or with `grad_aux_loss` what
            :meth:`compute_with_aux_loss` returns.
        gradients : Gradients
            Gradient of ``sum(output * grad_output) + loss * grad_aux_loss`` in `query`,
            `keys`, `values` and a float `mask`, each in the shape and dtype of the argument,
            and in ``parameters``, by the names of :meth:`parameters`. The choice of experts
            is taken as fixed, and so are the fractions f of the loss and the jitter, which is
            that of the output.

        Raises
        ------
        InvalidConfigError
            If `grad_lse` or `return_lse` is set, or `grad_aux_loss` is not finite.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        if return_lse or grad_lse is not None:
            raise InvalidConfigError(
                "return_lse and grad_lse must be left out: a mixture of experts has no single "
                "log-sum-exp"
            )
        with_loss = grad_aux_loss is not None
        factor = None if grad_aux_loss is None else finite(grad_aux_loss, "grad_aux_loss")
        result, routed, gradients = self._attend_with_gradients(
            query,
            keys,
            values,
            grad_output,
            factor,
            mask,
            flag(training, "training") or with_loss,
            return_weights,
            out,
        )
        return (result, self._loss(routed)) if with_loss else result, gradients

"""Attention between vectors that stand at positions, such as distances in a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, cast, compute_dtype, contiguous_rows, finished, floating, integers
from .._checks import integer
from .._problem import Problem
from .._rope import distance_bucket
from ..errors import DimensionMismatchError, InvalidConfigError
from ._rope_config import RoPEConfig
from ._rotary_base import RotaryAttention
from .base import Gradients, Inputs
from .dense import SoftmaxAttention

__all__ = ["GraphRoPEAttention", "RoPEConfig"]


class GraphRoPEAttention(RotaryAttention):
    r"""Dot-product attention between queries and keys that are turned by their positions.

    A position p turns each pair of entries of a head by an angle, a constant of that pair
    times p. What is left of positions in a dot product is their difference,

    .. math:: R(u) q \cdot R(v) k = q \cdot R(v - u) k

    (RoPE). In a graph the natural positions are distances from the node of the query, such as
    :func:`ruvector.graph.hop_distances` measures: the query stands at 0. Rotary positions are
    numbers on a line: distances from one node are, those between all pairs are not.

    Parameters
    ----------
    config : RoPEConfig, optional
        The configuration; without it, its fields are given as keywords.
    **fields
        The fields of :class:`RoPEConfig`.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain, or both a config and fields are given.

    References
    ----------
    .. [1] J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
       arXiv:2104.09864.
    .. [2] S. Chen et al., "Extending Context Window of Large Language Models via Positional
       Interpolation", 2023, arXiv:2306.15595.
    .. [3] B. Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models",
       2023, arXiv:2309.00071.

    Examples
    --------
    A node attends to the nodes that it leads to, by how far away they are:

    >>> import numpy as np
    >>> import ruvector
    >>> indptr, indices, _ = ruvector.graph.edges_to_csr([[0, 1, 2], [1, 2, 3]], 5)
    >>> hops = ruvector.graph.hop_distances(indptr, indices, 0)
    >>> hops
    array([ 0,  1,  2,  3, -1])
    >>> attention = ruvector.GraphRoPEAttention.simple(2, max_position=16)
    >>> nodes = np.tile(np.array([2.0, 0.0], np.float32), (5, 1))
    >>> output, weights = attention.compute_with_positions(
    ...     nodes[0], nodes, nodes, 0, np.maximum(hops, 0), mask=hops >= 0, return_weights=True
    ... )
    >>> weights.round(3)
    array([0.773, 0.211, 0.014, 0.003, 0.   ], dtype=float32)
    """

    @classmethod
    def simple(cls, dim: int, max_position: int) -> GraphRoPEAttention:
        """Make an attention with the defaults of :class:`RoPEConfig`.

        Parameters
        ----------
        dim, max_position
            As in :class:`RoPEConfig`.

        Returns
        -------
        GraphRoPEAttention
        """
        return cls(RoPEConfig(dim, max_position))

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from position 0 to keys at 0 to ``n - 1``.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`Attention.compute`. All queries stand at 0.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`.

        Raises
        ------
        InvalidConfigError
            If there are more keys than positions.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        if mask is None and out is None and not (return_lse or return_weights):
            result = self._single(query, keys, values)
            if result is not None:
                return result
        inputs = Inputs(query, keys, values, self._dim)
        places = self._checked_positions(inputs, None, None)
        return self._compute(inputs, mask, return_lse, return_weights, out, **places)

    def compute_with_positions(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        query_position: ArrayLike,
        key_positions: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend between positions.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`Attention.compute`.
        query_position : int, or array_like of int, shape (m,) or (B, m)
            Where the query stands, or each of several.
        key_positions : array_like of int, shape (n,) or (B, n)
            Where each key stands; several may stand at one position.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`.

        Raises
        ------
        InvalidConfigError
            If a position is negative or not below `max_position`.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        places = self._checked_positions(inputs, query_position, key_positions)
        return self._compute(inputs, mask, return_lse, return_weights, out, **places)

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        query_position: ArrayLike | None = None,
        key_positions: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`compute`.
        grad_output, grad_lse
            As in :meth:`Attention.compute_with_gradients`.
        query_position, key_positions : array_like of int, optional
            As in :meth:`compute_with_positions`; without them, as in :meth:`compute`.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute` returns.
        gradients : Gradients
            As :meth:`Attention.compute_with_gradients`.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidConfigError, InvalidMaskError, TypeError
            As :meth:`compute_with_positions`.

        Notes
        -----
        Unlike the result itself, the gradients take room for turned copies of queries and
        keys.
        """
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute_with_gradients(
            inputs,
            grad_output,
            grad_lse,
            mask,
            return_lse,
            return_weights,
            out,
            **self._checked_positions(inputs, query_position, key_positions),
        )

    def apply_rotary(self, x: ArrayLike, positions: ArrayLike) -> Array:
        """Turn vectors by their positions, each head on its own.

        Parameters
        ----------
        x : array_like, shape (..., dim)
            float32, float64, float16 or bfloat16; anything else real becomes float32.
        positions : array_like of int
            Where each vector stands: broadcastable to the axes of `x` before the last.

        Returns
        -------
        ndarray, shape (..., dim)
            In the dtype of `x`.

        Raises
        ------
        DimensionMismatchError
            If the width is not `dim`, or positions do not broadcast.
        InvalidConfigError
            If a position is negative or not below `max_position`.
        TypeError
            If `x` does not hold real numbers, or `positions` integers.
        """
        array = floating(x, "x")
        if array.ndim == 0 or array.shape[-1] != self._dim:
            raise DimensionMismatchError(
                f"x must have shape (..., {self._dim}), got {array.shape}"
            )
        leading, places = array.shape[:-1], self._in_range(positions, "positions")
        try:
            places = np.broadcast_to(places, leading)
        except ValueError:
            raise DimensionMismatchError(
                f"positions must broadcast to {leading}, got shape {places.shape}"
            ) from None
        count = 1 + int(places.max(initial=-1))
        table = self._turns.table(count, compute_dtype(array.dtype))
        rows = contiguous_rows(array, array.dtype)
        return finished(self._turned(rows, places, table), array.shape, array.dtype)

    @staticmethod
    def distance_to_position(distance: ArrayLike, max_distance: int) -> Any:
        """Turn distances in a graph into positions that grow slowly.

        Parameters
        ----------
        distance : int or array_like of int
            At least 0. Nodes out of reach have no position: hide them with a mask.
        max_distance : int
            The last position. Give the attention a `max_position` of at least
            ``max_distance + 1``.

        Returns
        -------
        int or ndarray of int64
            The distance itself up to 8, then ``8 + ceil(log2(distance))``, and never more than
            `max_distance`.

        Raises
        ------
        InvalidConfigError
            If a distance or `max_distance` is negative.
        TypeError
            If distances are not integers.

        Examples
        --------
        >>> import ruvector
        >>> ruvector.GraphRoPEAttention.distance_to_position([0, 5, 8, 9, 33, 1000], 20)
        array([ 0,  5,  8, 12, 14, 18])
        """
        limit = integer(max_distance, "max_distance", 0)
        distances = integers(distance, "distance")
        if distances.size and distances.min() < 0:
            raise InvalidConfigError(
                f"distance must not be negative (hide what is out of reach with a mask), got "
                f"{distances.min()}"
            )
        positions = distance_bucket(distances, limit)
        return positions if positions.ndim else int(positions)

    def _problem(self, inputs: Inputs, mask: Array | None, **options: Any) -> Problem:
        rotary = self._rotary(inputs, options["query_positions"], options["key_positions"])
        return super()._problem(inputs, mask, rotary=rotary)

    def _differentiate(
        self,
        inputs: Inputs,
        mask: Array | None,
        output: Array,
        lse: Array | None,
        grad_output: Array,
        grad_lse: Array | None,
        **options: Any,
    ) -> Gradients:
        queries, keys = options["query_positions"], options["key_positions"]
        rotary = self._rotary(inputs, queries, keys)
        wide = compute_dtype(inputs.query.dtype)
        shared = inputs.shared_keys and inputs.keys.strides[0] == keys.strides[0] == 0
        once = slice(0, 1 if shared else None)
        turned_keys = self._turned(cast(inputs.keys[once], wide), keys[once], rotary.table)
        plain = inputs.with_arrays(
            self._turned(cast(inputs.query, wide), queries, rotary.table),
            np.broadcast_to(turned_keys, inputs.keys.shape),
            cast(inputs.values, wide),
        )
        gradients = SoftmaxAttention(self._dim, self._heads)._differentiate(
            plain, mask, cast(output, wide), lse, cast(grad_output, wide), grad_lse
        )
        # The transpose of a turn is the turn back.
        back = self._turns.backward(rotary.table)
        key_gradient = self._turned(gradients.keys, keys[once], back)
        if inputs.shared_keys:
            key_gradient = key_gradient.sum(axis=0, keepdims=True)
        return replace(
            gradients, query=self._turned(gradients.query, queries, back), keys=key_gradient
        )

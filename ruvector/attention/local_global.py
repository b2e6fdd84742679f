"""Softmax attention within a window and to a few global tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, integers
from .._checks import MOST_POSITIONS, integer
from .._problem import Problem
from ..errors import DimensionMismatchError, InvalidConfigError
from .base import Gradients, Inputs
from .dense import SoftmaxAttention

__all__ = ["LocalGlobalAttention", "checked_positions", "standing"]


class LocalGlobalAttention(SoftmaxAttention):
    """Attention within a window around each query, and to a few global tokens.

    A query at position `p` sees the keys within ``local_window // 2`` of `p` on each side
    and the first `global_tokens` keys. A query that is itself a global token,
    ``p < global_tokens``, sees every key.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    local_window : int
        Width of the window.
    global_tokens : int
        Number of first keys that every query sees.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    References
    ----------
    .. [1] I. Beltagy, M. Peters, A. Cohan, "Longformer: The Long-Document Transformer",
       2020, arXiv:2004.05150.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.LocalGlobalAttention(4, local_window=2, global_tokens=1)
    >>> keys = np.zeros((6, 4), np.float32)
    >>> output, weights = attention.compute(
    ...     keys[0], keys, keys, positions=4, return_weights=True
    ... )
    >>> weights
    array([0.25, 0.  , 0.  , 0.25, 0.25, 0.25], dtype=float32)
    """

    _fields = ("dim", "local_window", "global_tokens")

    def __init__(self, dim: int, local_window: int, global_tokens: int) -> None:
        super().__init__(dim)
        self._local_window = integer(local_window, "local_window", 0)
        self._global_tokens = integer(global_tokens, "global_tokens", 0)

    @property
    def local_window(self) -> int:
        """Width of the window."""
        return self._local_window

    @property
    def global_tokens(self) -> int:
        """Number of first keys that every query sees."""
        return self._global_tokens

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        positions: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from one query, several, or a batch of several.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`Attention.compute`. A mask hides keys; it does not shift positions.
        positions : array_like of int, shape (m,), optional
            Where each query stands among the keys; a number for one query. Without it a
            single query stands at ``n // 2`` and is not a global token itself, and as many
            queries as keys stand at 0 to ``n - 1``; any other number needs positions.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`.

        Raises
        ------
        InvalidConfigError
            If positions are missing or negative.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        options = standing(inputs.query.shape[1], inputs.keys.shape[1], positions)
        return self._compute(inputs, mask, return_lse, return_weights, out, **options)

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        positions: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, positions, mask, return_lse, return_weights, out
            As in :meth:`compute`.
        grad_output, grad_lse
            As in :meth:`Attention.compute_with_gradients`.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute` returns.
        gradients : Gradients
            As :meth:`Attention.compute_with_gradients`.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidConfigError, InvalidMaskError, TypeError
            As :meth:`compute`.
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
            **standing(inputs.query.shape[1], inputs.keys.shape[1], positions),
        )

    def _problem(self, inputs: Inputs, mask: Array | None, **options: Any) -> Problem:
        half = min(self._local_window // 2, MOST_POSITIONS)
        sinks = min(self._global_tokens, MOST_POSITIONS)
        return super()._problem(inputs, mask, left=half, right=half, num_sinks=sinks, **options)


def standing(m: int, n: int, positions: ArrayLike | None) -> dict[str, Any]:
    """Return where m queries stand among n keys, and whether a global one sees every key."""
    if positions is not None:
        return {"symmetric": True, "positions": checked_positions(positions, m)}
    if m == 1:
        return {"positions": np.full(1, n // 2, np.int64)}
    if m not in (0, n):
        raise InvalidConfigError(
            f"positions must be given for {m} queries over {n} keys, got None"
        )
    return {"symmetric": True}


def checked_positions(positions: ArrayLike, m: int) -> Array:
    """Return the positions of m queries."""
    array = integers(positions, "positions")
    if array.shape != (m,) and not (m == 1 and array.ndim == 0):
        raise DimensionMismatchError(
            f"positions must have shape ({m},), one per query, got {array.shape}"
        )
    if array.size and array.min() < 0:
        raise InvalidConfigError(f"positions must not be negative, got {array.min()}")
    return array.reshape(m)

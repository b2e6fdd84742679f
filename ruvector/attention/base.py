"""What every attention class has in common: its interface and the shapes of its calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    Array,
    Output,
    cast,
    compute_dtype,
    contiguous_rows,
    floating,
    promote,
    vectors,
)
from .._checks import integer
from .._options import read_mask
from ..errors import DimensionMismatchError, EmptyInputError, InvalidMaskError

__all__ = ["Attention", "Inputs"]


class Attention(ABC):
    """Base class of all attention mechanisms over a memory of keys and values.

    A subclass names its configuration in ``_fields``, has a property for each, and computes
    in :meth:`_evaluate`.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    """

    _fields: ClassVar[tuple[str, ...]] = ("dim",)

    def __init__(self, dim: int) -> None:
        self._dim = integer(dim, "dim", 1)

    @property
    def dim(self) -> int:
        """Width of queries and keys."""
        return self._dim

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
        """Attend from one query, several, or a batch of several.

        Parameters
        ----------
        query : array_like, shape (dim,), (m, dim) or (B, m, dim)
            float32, float64, float16 or bfloat16; anything else real becomes float32.
        keys : array_like, shape (n, dim), or (B, n, dim) beside a batch of queries
            An array or a sequence of n vectors, at least one.
        values : array_like, shape (n, dim_v), or (B, n, dim_v) beside a batch of queries
            As many vectors as keys.
        mask : array_like, shape (n,) or (m, n), optional
            Bool: True attends. Float: added to the scores, and -inf hides. With a batch of
            queries also (B, m, n).
        return_lse : bool, default False
            Whether to return the natural log-sum-exp of the scores.
        return_weights : bool, default False
            Whether to return the weights.
        out : ndarray, optional
            Array for the output, with its shape and the query's dtype; it may overlap an
            input.

        Returns
        -------
        output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            In the query's dtype. A query that sees nothing gets 0.
        lse : ndarray, shape (), (m,) or (B, m)
            With an axis of heads at the end where there are several. Only with
            `return_lse`.
        weights : ndarray, shape (n,), (m, n) or (B, m, n)
            With an axis of heads before the last of these (before the last two where there
            are several queries), where there are several heads. Only with
            `return_weights`.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit each other or the configuration.
        EmptyInputError
            If there are no keys.
        InvalidMaskError
            If the mask has another shape, or is neither bool nor float.
        TypeError
            If an array does not hold real numbers.
        """
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(inputs, mask, return_lse, return_weights, out)

    def compute_with_mask(
        self, query: ArrayLike, keys: ArrayLike, values: ArrayLike, mask: ArrayLike | None
    ) -> Any:
        """Attend under a mask; the same as ``compute(query, keys, values, mask=mask)``.

        Parameters
        ----------
        query, keys, values, mask : array_like
            As in :meth:`compute`.

        Returns
        -------
        ndarray
            The output of :meth:`compute`.
        """
        return self.compute(query, keys, values, mask=mask)

    async def compute_async(
        self, query: ArrayLike, keys: ArrayLike, values: ArrayLike, **keywords: Any
    ) -> Any:
        """Run :meth:`compute` in a worker thread, so that the event loop goes on.

        Parameters
        ----------
        query, keys, values : array_like
            As in :meth:`compute`.
        **keywords
            As in :meth:`compute`.

        Returns
        -------
        ndarray or tuple of ndarray
            What :meth:`compute` returns.
        """
        from asyncio import to_thread

        return await to_thread(self.compute, query, keys, values, **keywords)

    def _compute(
        self,
        inputs: Inputs,
        mask: ArrayLike | None,
        return_lse: bool,
        return_weights: bool,
        out: Array | None,
        **options: Any,
    ) -> Any:
        checked = None if mask is None else inputs.checked_mask(mask)
        destination = Output(
            out,
            (*inputs.leading, inputs.values.shape[-1]),
            inputs.dtype,
            inputs.query.dtype,
            (inputs.query, inputs.keys, inputs.values, checked),
        )
        work = destination.work.reshape(*inputs.query.shape[:2], inputs.values.shape[-1])
        lse, weights = self._evaluate(
            inputs, checked, work, return_lse, return_weights, **options
        )
        result = [destination.deliver()]
        if return_lse:
            result.append(inputs.shaped_lse(lse))
        if return_weights:
            result.append(inputs.shaped_weights(weights))
        return result[0] if len(result) == 1 else tuple(result)

    @abstractmethod
    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        """Write the output, and return L and the weights where asked for.

        Parameters
        ----------
        inputs : Inputs
            The checked arrays.
        mask : ndarray, shape (B, 1, m, n), or None
            A view: bool, or the compute dtype for a bias.
        out : ndarray, shape (B, m, dim_v)
            Takes the output, in the dtype of ``inputs.query``.
        return_lse, return_weights : bool
            What is asked for.
        **options
            What a subclass adds to ``compute``.

        Returns
        -------
        lse : ndarray, shape (B, heads, m), or None
        weights : ndarray, shape (B, heads, m, n), or None
        """

    def _config(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self._fields)

    def __repr__(self) -> str:
        """Return the call that makes an equal object."""
        config = ", ".join(f"{name}={value!r}" for name, value in self._config())
        return f"{type(self).__name__}({config})"

    def __eq__(self, other: object) -> bool:
        """Compare class and configuration."""
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Attention)
        return self._config() == other._config()

    def __hash__(self) -> int:
        """Hash class and configuration."""
        return hash((type(self), self._config()))


class Inputs:
    """The arrays of one ``compute`` call, checked and brought to three axes.

    Attributes
    ----------
    query : ndarray, shape (B, m, dim)
        A storage array with contiguous rows, as are `keys` and `values`.
    keys : ndarray, shape (B, n, dim)
        Of the query's storage dtype; a view that repeats where one memory serves a batch.
    values : ndarray, shape (B, n, dim_v)
        As the keys.
    leading : tuple of int
        The axes of the caller's query before the last: (), (m,) or (B, m).
    dtype : dtype
        Storage dtype of the caller's query, and so of the result.
    """

    __slots__ = ("dtype", "keys", "leading", "query", "values")

    def __init__(self, query: ArrayLike, keys: ArrayLike, values: ArrayLike, dim: int) -> None:
        q = floating(query, "query")
        k, v = vectors(keys, "keys"), vectors(values, "values")
        if not 1 <= q.ndim <= 3 or q.shape[-1] != dim:
            raise DimensionMismatchError(
                f"query must have shape ({dim},), (m, {dim}) or (B, m, {dim}), got {q.shape}"
            )
        self.leading = q.shape[:-1]
        self.dtype = q.dtype
        if k.ndim > 1 and k.shape[-2] == 0:
            raise EmptyInputError(f"keys must hold at least one vector, got shape {k.shape}")
        batch = self.leading[0] if q.ndim == 3 else None
        k = _three_axes(k, "keys", batch, dim)
        v = _three_axes(v, "values", batch, None)
        if v.shape[1] != k.shape[1]:
            raise DimensionMismatchError(
                f"values must hold {k.shape[1]} vectors, one per key, got {v.shape[1]}"
            )
        dtype = promote(q, k, v)
        q = contiguous_rows(q, dtype)
        self.query = q[(np.newaxis,) * (3 - q.ndim)]
        self.keys = _repeated(contiguous_rows(k, dtype), len(self.query))
        self.values = _repeated(contiguous_rows(v, dtype), len(self.query))

    def checked_mask(self, mask: ArrayLike) -> Array:
        """Return the caller's mask as a view of shape ``(B, 1, m, n)``."""
        read = read_mask(mask, "mask", compute_dtype(self.query.dtype))
        (batch, m), n = self.query.shape[:2], self.keys.shape[1]
        axes = (m, batch) if len(self.leading) == 2 else (m,)
        if not (
            read.shape[-1:] == (n,)
            and read.ndim <= len(axes) + 1
            and all(x in (1, y) for x, y in zip(read.shape[-2::-1], axes, strict=False))
        ):
            raise InvalidMaskError(
                f"mask must have shape ({n},) or ({m}, {n}), got shape {read.shape}"
            )
        if read.ndim == 3:
            read = read[:, np.newaxis]
        return np.broadcast_to(read, (batch, 1, m, n))

    def shaped_lse(self, lse: Array | None) -> Any:
        """Bring L of shape ``(B, heads, m)`` to what the caller gets."""
        assert lse is not None
        lse = cast(lse, compute_dtype(self.dtype)).swapaxes(1, 2)
        if lse.shape[-1] == 1:
            lse = lse[..., 0]
        return lse if len(self.leading) == 2 else lse[0] if self.leading else lse[0, 0]

    def shaped_weights(self, weights: Array | None) -> Array:
        """Bring weights of shape ``(B, heads, m, n)`` to what the caller gets."""
        assert weights is not None
        weights = cast(weights, compute_dtype(self.dtype))
        if weights.shape[1] == 1:
            weights = weights[:, 0]
        if len(self.leading) == 2:
            return weights
        return weights[0] if self.leading else weights[0, ..., 0, :]


def _three_axes(x: Array, name: str, batch: int | None, dim: int | None) -> Array:
    width = "dim_v" if dim is None else str(dim)
    if batch is None:
        wanted, fits = f"(n, {width})", x.ndim == 2
    else:
        wanted = f"({batch}, n, {width}) or (n, {width})"
        fits = x.ndim == 2 or (x.ndim == 3 and x.shape[0] in (1, batch))
    if not fits or (dim is not None and x.shape[-1] != dim):
        raise DimensionMismatchError(f"{name} must have shape {wanted}, got {x.shape}")
    return x if x.ndim == 3 else x[np.newaxis]


def _repeated(x: Array, batch: int) -> Array:
    return x if len(x) == batch else np.broadcast_to(x, (batch, *x.shape[1:]))

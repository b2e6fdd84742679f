"""The arrays of a call of an attention class, checked, and their gradients."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    BFLOAT16,
    FLOAT32,
    Array,
    Output,
    cast,
    compute_dtype,
    contiguous_rows,
    finished,
    floating,
    promote,
    vectors,
    view,
)
from .._backward import new_target
from .._options import read_mask
from ..errors import DimensionMismatchError, EmptyInputError, InvalidMaskError

__all__ = ["Gradients", "Inputs", "by_head", "is_plain"]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """What ``compute_with_gradients`` returns beside the result.

    Attributes
    ----------
    query, keys, values : ndarray
        In shape and dtype of the arguments.
    mask : ndarray or None
        None without a float mask.
    edge_features : ndarray or None
        None where there are no edge features.
    parameters : dict of str to ndarray
        By the names that ``parameters()`` uses; empty where a class has none.
    """

    query: Array
    keys: Array
    values: Array
    mask: Array | None = None
    edge_features: Array | None = None
    parameters: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """Return a gradient by its name."""
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)


class _Origin(NamedTuple):
    """What an array was before it became one of a kernel's."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Inputs:
    """The arrays of one ``compute`` call, checked and brought to three axes.

    Parameters
    ----------
    query, keys, values : array_like
        As in :meth:`ruvector.Attention.compute`.
    dim : int
        Width of queries and keys.
    empty : bool, default False
        Whether there may be no keys.

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

    __slots__ = ("_mask", "_origins", "dtype", "keys", "leading", "query", "values")

    def __init__(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        dim: int,
        *,
        empty: bool = False,
    ) -> None:
        q = floating(query, "query")
        k, v = vectors(keys, "keys"), vectors(values, "values")
        if not 1 <= q.ndim <= 3 or q.shape[-1] != dim:
            raise DimensionMismatchError(
                f"query must have shape ({dim},), (m, {dim}) or (B, m, {dim}), got {q.shape}"
            )
        self.leading = q.shape[:-1]
        self.dtype = q.dtype
        self._origins = tuple(_Origin(x.shape, x.dtype) for x in (q, k, v))
        self._mask: _Origin | None = None
        if not empty and k.ndim > 1 and k.shape[-2] == 0:
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
        original, is_bfloat16 = view(mask, "mask")
        self._mask = _Origin(original.shape, BFLOAT16 if is_bfloat16 else original.dtype)
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

    def output(
        self, out: object, work_dtype: np.dtype[Any], others: tuple[Array | None, ...]
    ) -> tuple[Output, Array]:
        """Return where the output goes, and that as ``(B, m, dim_v)`` for a kernel.

        `others` is what is read beside these arrays while the output is written.
        """
        width = self.values.shape[-1]
        destination = Output(
            out,
            (*self.leading, width),
            self.dtype,
            work_dtype,
            (self.query, self.keys, self.values, *others),
        )
        return destination, destination.work.reshape(*self.query.shape[:2], width)

    def result(self, destination: Output, lse: Array | None, weights: Array | None) -> Any:
        """Deliver what the caller asked for."""
        result = [destination.deliver()]
        if lse is not None:
            result.append(self.shaped_lse(lse))
        if weights is not None:
            result.append(self.shaped_weights(weights))
        return result[0] if len(result) == 1 else tuple(result)

    def checked_gradient(
        self, grad_output: ArrayLike, dtype: np.dtype[Any], width: int | None = None
    ) -> Array:
        """Return the gradient of the output as ``(B, m, width)``, ready for a kernel.

        The output is as wide as the values where `width` is not given.
        """
        array = floating(grad_output, "grad_output")
        wanted = (*self.leading, self.values.shape[-1] if width is None else width)
        if array.shape != wanted:
            raise DimensionMismatchError(
                f"grad_output must have shape {wanted} like the output, got {array.shape}"
            )
        array = contiguous_rows(array, dtype)
        return array[(np.newaxis,) * (3 - array.ndim)]

    def checked_lse_gradient(self, grad_lse: ArrayLike, heads: int) -> Array:
        """Return the gradient of L as ``(B, heads, m)`` in the compute dtype."""
        array = floating(grad_lse, "grad_lse")
        wanted = self.leading if heads == 1 else (*self.leading, heads)
        if array.shape != wanted:
            raise DimensionMismatchError(
                f"grad_lse must have shape {wanted} like the log-sum-exp, got {array.shape}"
            )
        if heads == 1:
            array = array[..., np.newaxis]
        array = array[(np.newaxis,) * (3 - array.ndim)]
        return cast(array, compute_dtype(self.query.dtype)).swapaxes(1, 2)

    def with_arrays(self, query: Array, keys: Array, values: Array) -> Inputs:
        """Return the same call over other arrays.

        A memory that served a batch still does, keys only where they still repeat: what the
        caller repeats has a gradient for every entry.
        """
        other = copy(self)
        other.query, other.keys, other.values = query, keys, values
        shared = (False, self.shared_keys and keys.strides[0] == 0, self.shared_values)
        other._origins = tuple(
            _Origin((1, *x.shape[1:]) if once else x.shape, x.dtype)
            for x, once in zip((query, keys, values), shared, strict=True)
        )
        return other

    @property
    def shared_keys(self) -> bool:
        """Whether one memory of keys serves a batch."""
        return self._origins[1].shape[:-2] in ((), (1,))

    @property
    def shared_values(self) -> bool:
        """Whether one memory of values serves a batch."""
        return self._origins[2].shape[:-2] in ((), (1,))

    def new_gradients(self) -> tuple[Array, Array, Array]:
        """Return arrays for the gradients of query, keys and values.

        A memory that serves a batch has a first axis of length 1 and the compute dtype.
        """
        query, keys, values = (
            new_target(x, origin.shape)
            for x, origin in zip(
                (self.query, self.keys, self.values), self._origins, strict=True
            )
        )
        return query, keys, values

    def new_mask_gradient(self, mask: Array | None) -> Array | None:
        """Return an array for the gradient of a float mask, None where there is none.

        It has four axes, those that the caller's mask lacks with length 1.
        """
        if mask is None or mask.dtype == np.bool_:
            return None
        assert self._mask is not None
        shape = self._mask.shape
        if len(shape) == 3:
            shape = (shape[0], 1, *shape[1:])
        return np.empty((1,) * (4 - len(shape)) + shape, mask.dtype)

    def shaped_gradients(self, gradients: Gradients) -> Gradients:
        """Bring gradients to the shapes and dtypes of what the caller gave."""
        names = ("query", "keys", "values")
        shaped: dict[str, Any] = {
            name: finished(gradients[name], origin.shape, origin.dtype)
            for name, origin in zip(names, self._origins, strict=True)
        }
        if gradients.mask is not None:
            assert self._mask is not None
            shaped["mask"] = finished(gradients.mask, *self._mask)
        return replace(gradients, **shaped)

    def shaped_lse(self, lse: Array | None) -> Any:
        """Bring L of shape ``(B, heads, m)`` to what the caller gets."""
        assert lse is not None
        lse = cast(lse, compute_dtype(self.dtype)).swapaxes(1, 2)
        if lse.shape[-1] == 1:
            lse = lse[..., 0]
        return lse if len(self.leading) == 2 else lse[0] if self.leading else lse[0, 0]

    def shaped_weights(self, weights: Array | None, *, keep_heads: bool = False) -> Array:
        """Bring weights of shape ``(B, heads, m, n)`` to what the caller gets."""
        assert weights is not None
        weights = cast(weights, compute_dtype(self.dtype))
        if weights.shape[1] == 1 and not keep_heads:
            weights = weights[:, 0]
        if len(self.leading) == 2:
            return weights
        return weights[0] if self.leading else weights[0, ..., 0, :]


def is_plain(query: Any, keys: Any, values: Any, dim: int) -> bool:
    """Tell whether it is one float32 query over arrays that a kernel can read as they are."""
    return (
        type(query) is type(keys) is type(values) is np.ndarray
        and query.dtype == keys.dtype == values.dtype == FLOAT32
        and query.ndim == 1
        and keys.ndim == values.ndim == 2
        and len(query) == dim == keys.shape[1]
        and len(values) == len(keys) > 0
        and query.flags.c_contiguous
        and query.flags.aligned
        and keys.flags.c_contiguous
        and keys.flags.aligned
        and values.flags.c_contiguous
        and values.flags.aligned
    )


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


def by_head(x: Array, heads: int) -> Array:
    """View vectors ``(B, length, width)`` as ``(B, heads, length, width // heads)``."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)

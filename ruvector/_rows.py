"""Arrays of any shape as the matrices of rows that ``_kernels.utils`` works on."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from ._arrays import Array, Output, compute_dtype, contiguous_rows, promote
from .errors import DimensionMismatchError, EmptyInputError

__all__ = ["RowOutput", "at_least", "check_width", "row_pairs", "rows", "zero_vector"]


def at_least(ndim: int, array: Array, name: str, shape: str) -> Array:
    """Return the array if it has that many axes; the message describes them as `shape`."""
    if array.ndim < ndim:
        raise DimensionMismatchError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def check_width(array: Array, name: str, other: Array, other_name: str) -> None:
    """Raise where the vectors of two arrays differ in length."""
    if array.shape[-1] != other.shape[-1]:
        raise DimensionMismatchError(
            f"{name} must hold vectors of length {other.shape[-1]} as in {other_name}, "
            f"got {array.shape[-1]}"
        )


def rows(array: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return the vectors along the last axis as a C-contiguous matrix.

    It has the compute dtype unless told otherwise, and is a view where nothing had to be
    converted.
    """
    dtype = compute_dtype(array.dtype) if dtype is None else dtype
    matrix = np.ascontiguousarray(contiguous_rows(array, dtype))
    return matrix.reshape(prod(array.shape[:-1]), array.shape[-1])


def row_pairs(
    a: Array, b: Array, lead: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], Array, Array]]:
    """Walk two broadcast arrays of vectors as pairs of matrices, without repeating any.

    Parameters
    ----------
    a, b : ndarray, shape (..., d)
    lead : tuple of int
        What their leading axes broadcast to.

    Yields
    ------
    index : tuple of int
        The part of `lead` that the pair covers.
    a, b : ndarray, shape (n, d) or (1, d)
        Of the compute dtype.
    """
    dtype = compute_dtype(promote(a, b))
    x, y = rows(a, dtype), rows(b, dtype)
    if a.shape == b.shape or len(x) == 1 or len(y) == 1:
        yield (), x, y
        return
    x, y = (
        np.broadcast_to(z.reshape(array.shape), (*lead[:-1], *array.shape[-2:]))
        for z, array in ((x, a), (y, b))
    )
    for index in np.ndindex(*lead[:-1]):
        yield index, x[index], y[index]


def zero_vector(**arrays: Array) -> EmptyInputError:
    """Return the error that names the first zero vector among arrays of vectors."""
    zeros = {name: np.flatnonzero(~rows(x).any(axis=1)) for name, x in arrays.items()}
    name = next(name for name, found in zeros.items() if found.size)
    lead = arrays[name].shape[:-1]
    index = tuple(map(int, np.unravel_index(zeros[name][0], lead))) if lead else ()
    where = f" at index {index}" if lead else ""
    return EmptyInputError(f"{name} must not hold a zero vector, got one{where}")


class RowOutput:
    """Where a row function writes: C-contiguous, of the compute dtype.

    Parameters
    ----------
    out : object
        The caller's array, or None.
    shape : tuple of int
        Shape of the result.
    *inputs : ndarray
        What the kernel reads; the result has the dtype they promote to.
    in_place : bool, default False
        Whether the kernel may write over the first input, element by element.

    Attributes
    ----------
    work : ndarray
        What the kernel writes, of `shape`.
    """

    __slots__ = ("_fresh", "_output", "work")

    def __init__(
        self, out: object, shape: tuple[int, ...], *inputs: Array, in_place: bool = False
    ) -> None:
        dtype = promote(*inputs)
        work_dtype = compute_dtype(dtype)
        reads = () if in_place and _is_same_memory(out, inputs[0]) else inputs
        self._fresh = out is None
        self._output = Output(out, shape, dtype, work_dtype, reads)
        work = self._output.work
        self.work = work if work.flags.c_contiguous else np.empty(shape, work_dtype)

    def deliver(self) -> Array:
        """Return the finished result; a fresh one without axes is a scalar."""
        if self.work is not self._output.work:
            self._output.work[...] = self.work
        result: Array = self._output.deliver()
        return result[()] if self._fresh and not result.ndim else result


def _is_same_memory(a: object, b: Array) -> bool:
    return a is b or (
        isinstance(a, np.ndarray) and a.__array_interface__ == b.__array_interface__
    )

"""Merging the states of softmax rows over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from . import _kernels
from ._arrays import (
    FLOAT64,
    Array,
    Output,
    compute_dtype,
    contiguous_rows,
    floating,
)
from .errors import DimensionMismatchError, EmptyInputError

__all__ = ["merge_states"]


def merge_states(
    outputs: ArrayLike | Sequence[ArrayLike], lses: ArrayLike | Sequence[ArrayLike]
) -> tuple[Array, Array]:
    r"""Combine the attention states of disjoint sets of keys into that of their union.

    .. math::

        L = \ln \sum_p e^{L_p}, \qquad o = \sum_p e^{L_p - L}\, o_p

    Parts are taken in order, so the result does not depend on how it is computed. The
    identity is ``(0, -inf)``, and the output beside an ``L`` of -inf is never read.

    Parameters
    ----------
    outputs : array_like, shape (P, ..., Dv), or sequence of P arrays (..., Dv)
        The output of each part.
    lses : array_like, shape (P, ...), or sequence of P arrays (...)
        The log-sum-exp beside it, as ``return_lse=True`` gives it. For the classes with
        several heads it has one more axis, ``(P, ..., heads)``, and each head's slice of
        the outputs is merged by its own.

    Returns
    -------
    output : ndarray, shape (..., Dv)
        In the dtype of the outputs.
    lse : ndarray, shape (...) or (..., heads)
        Natural log-sum-exp over all parts, float32, or float64 where either input is.

    Raises
    ------
    EmptyInputError
        If `outputs` is an empty sequence, which has no shape.
    DimensionMismatchError
        If the shapes do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> attention = ruvector.DotProductAttention(8)
    >>> query, keys = rng.standard_normal(8), rng.standard_normal((20, 8))
    >>> parts = [
    ...     attention.compute(query, part, part, return_lse=True)
    ...     for part in (keys[:5], keys[5:])
    ... ]
    >>> output, lse = ruvector.merge_states(*zip(*parts))
    >>> bool(np.allclose(output, attention.compute(query, keys, keys)))
    True
    """
    o, each = floating(outputs, "outputs"), floating(lses, "lses")
    heads = _heads(o, each)
    dtype = FLOAT64 if FLOAT64 in (o.dtype, each.dtype) else compute_dtype(o.dtype)
    work_dtype = FLOAT64 if dtype == FLOAT64 else o.dtype
    parts, width = len(o), o.shape[-1] // heads
    destination = Output(None, o.shape[1:], o.dtype, work_dtype)
    lse = np.empty(each.shape[1:], dtype)
    rows = lse.size
    _kernels.softmax.merge(
        contiguous_rows(o, work_dtype).reshape(parts, rows, width),
        contiguous_rows(each.reshape(parts, rows), dtype),
        destination.work.reshape(rows, width),
        lse.reshape(rows),
    )
    # Indexing with () turns an array without axes into a scalar, as compute() returns it.
    return destination.deliver(), lse[()]


def _heads(outputs: Array, lses: Array) -> int:
    """Return how many slices of the last axis have an L of their own."""
    shape = outputs.shape
    if len(shape) < 2:
        if outputs.size == 0:
            raise EmptyInputError(f"outputs must have at least one part, got shape {shape}")
        raise DimensionMismatchError(
            f"outputs must have shape (parts, ..., width), got {shape}"
        )
    if lses.shape == shape[:-1]:
        return 1
    heads = lses.shape[-1] if lses.ndim else 0
    if lses.ndim != len(shape) or lses.shape[:-1] != shape[:-1] or heads == 0:
        raise DimensionMismatchError(
            f"lses must have shape {shape[:-1]}, or that with an axis of heads, for outputs "
            f"of shape {shape}, got {lses.shape}"
        )
    if shape[-1] % heads:
        raise DimensionMismatchError(
            f"outputs must have a last axis that divides into the {heads} heads of lses, "
            f"got shape {shape}"
        )
    return heads

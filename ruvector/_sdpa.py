"""The arguments of ``scaled_dot_product_attention`` and its gradient as one problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import Array, cast, compute_dtype, floating
from ._checks import finite
from ._options import sequence_options
from ._problem import build_problem
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["Call"]


class Call:
    """One checked call, and the way between the caller's axes and the problem's.

    Parameters
    ----------
    query, key, value, attn_mask, dropout_p, cu_seqlens_q, cu_seqlens_k, **options
        As in :func:`ruvector.scaled_dot_product_attention`.

    Attributes
    ----------
    problem : Problem
        What the kernels compute.
    arrays : tuple of ndarray
        Query, key and value as storage arrays, packed ones with the heads first.
    shape : tuple of int
        Shape of the output, in the caller's axes.
    """

    __slots__ = ("_packed", "arrays", "problem", "shape")

    def __init__(
        self,
        query: object,
        key: object,
        value: object,
        attn_mask: object,
        dropout_p: float,
        cu_seqlens_q: object,
        cu_seqlens_k: object,
        **options: Any,
    ) -> None:
        if dropout_p and finite(dropout_p, "dropout_p"):
            raise InvalidConfigError(f"dropout_p must be 0 (no dropout), got {dropout_p!r}")
        q, k, v = floating(query, "query"), floating(key, "key"), floating(value, "value")
        packed = cu_seqlens_q is not None or cu_seqlens_k is not None
        sequences: dict[str, Any] = {}
        if packed:
            if cu_seqlens_q is None or cu_seqlens_k is None:
                missing = "cu_seqlens_q" if cu_seqlens_q is None else "cu_seqlens_k"
                raise InvalidConfigError(
                    f"{missing} must be given with its counterpart, got None"
                )
            for x, name in ((q, "query"), (k, "key"), (v, "value")):
                if x.ndim != 3:
                    raise DimensionMismatchError(
                        f"{name} must have 3 axes (rows, heads, features) with cu_seqlens, "
                        f"got shape {x.shape}"
                    )
            sequences = sequence_options(cu_seqlens_q, cu_seqlens_k, len(q), len(k))
            q, k, v = q.swapaxes(0, 1), k.swapaxes(0, 1), v.swapaxes(0, 1)
        self._packed = packed
        self.arrays = (q, k, v)
        self.problem = build_problem(
            self.arrays, ("query", "key", "value"), attn_mask, **options
        )
        self.problem.options.update(sequences)
        assert self.problem.value is not None
        shape = (*self.problem.query.shape[:-1], self.problem.value.shape[-1])
        if packed:
            shape = (shape[1], shape[0], shape[2])
        elif max(q.ndim, k.ndim, v.ndim) == 2:
            shape = shape[1:]
        self.shape = shape

    def inner(self, x: Array) -> Array:
        """View an array with the axes of the output, or of L, in those of the problem."""
        if self._packed:
            return x.swapaxes(0, 1)
        return x[np.newaxis] if len(self.shape) == 2 else x

    def outer(self, x: Array) -> Array:
        """View an array of the problem's as the caller lays it out."""
        return x.swapaxes(0, 1) if self._packed else x

    def shaped_lse(self, lse: Array) -> Array:
        """Bring L to what the caller gets."""
        lse = cast(lse, compute_dtype(self.arrays[0].dtype))
        return lse.T if self._packed else lse.reshape(self.shape[:-1])

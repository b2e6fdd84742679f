"""Anchors, positives and negatives of any accepted shape as the matrices kernels work on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import (
    FLOAT64,
    Array,
    compute_dtype,
    finished,
    floating,
    integers,
    promote,
    vectors,
)
from .._checks import one_of
from .._kernels.contrastive import Ids
from .._rows import rows, zero_vector
from ..errors import DimensionMismatchError, EmptyInputError, InvalidConfigError

__all__ = ["Triples", "check_width", "matrix", "reduced", "reduction_of", "row_weights"]

_REDUCTIONS = ("mean", "sum", "none")


class Triples:
    """One batch of a loss.

    Parameters
    ----------
    anchor, positive : array_like, shape (d,) or (B, d)
    negatives : array_like, shape (N, d) or (B, N, d), or None
    ids, negative_ids : array_like of int, or None
        Shape ``(B,)``; and ``(N,)`` or ``(B, N)``, as many as there are negatives.
    precise : bool, default False
        Whether to compute in float64 whatever the input is.

    Attributes
    ----------
    anchor, positive : ndarray, shape (B, d)
        C-contiguous, of the compute dtype, as `negatives`.
    negatives : ndarray, shape (N, d) or (B, N, d), or None
    ids : Ids or None
    """

    def __init__(
        self,
        anchor: object,
        positive: object,
        negatives: object,
        ids: object,
        negative_ids: object,
        *,
        precise: bool = False,
    ) -> None:
        self._given = [floating(anchor, "anchor"), floating(positive, "positive")]
        first, second = self._given
        if first.ndim not in (1, 2):
            raise DimensionMismatchError(
                f"anchor must have shape (d,) or (B, d), got {first.shape}"
            )
        if second.shape != first.shape:
            raise DimensionMismatchError(
                f"positive must have shape {first.shape} like anchor, got {second.shape}"
            )
        self.single = first.ndim == 1
        if negatives is not None:
            self._given.append(vectors(negatives, "negatives"))
            self._check_negatives(self._given[2])
        elif self.single:
            raise EmptyInputError("negatives must hold at least one vector, got None")
        if not first.size:
            raise EmptyInputError(f"anchor must not be empty, got shape {first.shape}")
        dtype = FLOAT64 if precise else compute_dtype(promote(*self._given))
        self.anchor, self.positive = rows(first, dtype), rows(second, dtype)
        self.negatives: Array | None = None
        if negatives is not None:
            self.negatives = rows(self._given[2], dtype).reshape(self._given[2].shape)
        self.ids = self._checked_ids(ids, negative_ids)

    def _check_negatives(self, array: Array) -> None:
        anchor = self._given[0]
        shapes = "(N, d)" if self.single else "(N, d) or (B, N, d)"
        if array.ndim not in ((2,) if self.single else (2, 3)):
            raise DimensionMismatchError(
                f"negatives must have shape {shapes}, got {array.shape}"
            )
        if array.shape[-2] == 0:
            raise EmptyInputError(
                f"negatives must hold at least one vector, got shape {array.shape}"
            )
        check_width(array, "negatives", anchor)
        if array.ndim == 3 and len(array) != len(anchor):
            raise DimensionMismatchError(
                f"negatives must hold {len(anchor)} sets, one per anchor, "
                f"got shape {array.shape}"
            )

    def _checked_ids(self, ids: object, negative_ids: object) -> Ids | None:
        if ids is None:
            if negative_ids is not None:
                raise InvalidConfigError("negative_ids must come with ids, got ids=None")
            return None
        own = integers(ids, "ids")
        if own.ndim == 0 and self.single:
            own = own.reshape(1)
        if own.shape != (len(self.anchor),):
            raise DimensionMismatchError(
                f"ids must hold {len(self.anchor)} numbers, one per positive, "
                f"got shape {own.shape}"
            )
        if self.negatives is None:
            if negative_ids is not None:
                raise InvalidConfigError(
                    "negative_ids must not come without negatives: in the batch ids says all"
                )
            return Ids(own, own)
        if negative_ids is None:
            raise InvalidConfigError("ids of given negatives need negative_ids, got None")
        others = integers(negative_ids, "negative_ids")
        if others.shape != self.negatives.shape[:-1]:
            raise DimensionMismatchError(
                f"negative_ids must have shape {self.negatives.shape[:-1]}, one per negative, "
                f"got {others.shape}"
            )
        return Ids(own, others)

    def zero_vector(self) -> EmptyInputError:
        """Return the error that names the vector without a direction."""
        names = ("anchor", "positive", "negatives")
        return zero_vector(**dict(zip(names, self._given, strict=False)))

    def returned(
        self, anchor: Array, positive: Array, negatives: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Bring gradients to shape and dtype of what was given."""
        first, second = (
            finished(x, like.shape, like.dtype)
            for x, like in zip((anchor, positive), self._given, strict=False)
        )
        if negatives is None:
            return first, second, None
        third = self._given[2]
        return first, second, finished(negatives, third.shape, third.dtype)


def check_width(array: Array, name: str, anchor: Array) -> None:
    """Raise where vectors are not as long as an anchor."""
    if array.shape[-1] != anchor.shape[-1]:
        raise DimensionMismatchError(
            f"{name} must hold vectors of length {anchor.shape[-1]} as in anchor, "
            f"got shape {array.shape}"
        )


def reduction_of(value: Any) -> str:
    """Return a checked name of a reduction."""
    return one_of(value, "reduction", _REDUCTIONS)


def row_weights(reduction: str, count: int) -> NDArray[np.float64]:
    """Return what the loss of each row counts."""
    return np.full(count, 1 / count if reduction == "mean" else 1.0)


def reduced(losses: NDArray[np.float64], reduction: str, single: bool) -> Any:
    """Return the mean or the sum as a float, or the losses themselves."""
    if reduction == "none" and not single:
        return losses
    return float(losses.mean() if reduction == "mean" else losses.sum())


def matrix(x: object, name: str) -> Array:
    """Turn vectors ``(n, d)`` into a C-contiguous matrix of the compute dtype."""
    array = vectors(x, name)
    if array.ndim != 2:
        raise DimensionMismatchError(f"{name} must have shape (n, d), got {array.shape}")
    if not array.size:
        raise EmptyInputError(f"{name} must not be empty, got shape {array.shape}")
    return rows(array)

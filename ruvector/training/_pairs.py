"""The pairs that are trained on, as they lie: in memory, mapped or strided."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import FLOAT32, Array, cast, integers, view
from ..errors import DimensionMismatchError, EmptyInputError

__all__ = ["Chosen", "Items", "Pairs"]

# Rows of an array that its fingerprint covers.
_SAMPLE = 256


class Items:
    """Things to encode: the rows of an array that is read a few rows at a time.

    Parameters
    ----------
    x : array_like, shape (n, ...)
        Vectors, or numbers of nodes; what a row is is the model's business.
    name : str
        What messages call it.
    """

    __slots__ = ("_is_bfloat16", "array")

    def __init__(self, x: object, name: str) -> None:
        self.array, self._is_bfloat16 = view(x, name)
        if self.array.ndim == 0:
            raise DimensionMismatchError(f"{name} must have shape (n, ...), got ()")
        if self.array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, got dtype {self.array.dtype}")
        if not self.array.size:
            raise EmptyInputError(f"{name} must not be empty, got shape {self.array.shape}")

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: slice | NDArray[Any]) -> Array:
        """Return some rows; bfloat16 as float32."""
        taken: Array = self.array[rows]
        return cast(taken, FLOAT32) if self._is_bfloat16 else taken

    def fingerprint(self) -> list[Any]:
        """Return shape, dtype and a checksum of rows here and there."""
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(np.intp))
        content = zlib.crc32(np.ascontiguousarray(self.array[rows]).tobytes())
        return [list(self.array.shape), self.array.dtype.str, content]


class Chosen(NamedTuple):
    """What the anchors of a step are told from, beside the positives of the batch.

    Attributes
    ----------
    items : ndarray, shape (U, ...)
        To be encoded.
    ids : ndarray of int64, shape (U,)
    each : int
        How many of them belong to each anchor, 0 where they serve the whole batch.
    """

    items: Array
    ids: NDArray[np.int64]
    each: int


class Pairs:
    """Anchors, their positives, and what else serves as negatives.

    Parameters
    ----------
    anchors, positives : array_like, shape (n, ...)
    negatives : array_like, shape (N, ...) or (n, k, ...), or None
        A pool, or each anchor's own.
    ids : array_like of int, shape (n,), or None
        What each positive is.

    Attributes
    ----------
    pool : Items or None
        The negatives that are shared.
    own : Items or None
        Those of each anchor.
    """

    def __init__(
        self, anchors: object, positives: object, negatives: object, ids: ArrayLike | None
    ) -> None:
        self.anchors = Items(anchors, "anchors")
        self.positives = Items(positives, "positives")
        if len(self.positives) != len(self.anchors):
            raise DimensionMismatchError(
                f"positives must hold {len(self.anchors)} rows, one per anchor, "
                f"got shape {self.positives.array.shape}"
            )
        self.pool: Items | None = None
        self.own: Items | None = None
        if negatives is not None:
            given = Items(negatives, "negatives")
            axes = self.positives.array.ndim
            if given.array.ndim == axes:
                self.pool = given
            elif given.array.ndim == axes + 1 and len(given) == len(self.anchors):
                self.own = given
            else:
                rest = self.positives.array.shape[1:]
                raise DimensionMismatchError(
                    f"negatives must have shape {('N', *rest)} or "
                    f"{(len(self.anchors), 'k', *rest)}, got {given.array.shape}"
                )
            self._check_row(given.array.shape[-axes + 1 :] if axes > 1 else ())
        self.given_ids = ids is not None
        self.ids = np.arange(len(self.anchors)) if ids is None else integers(ids, "ids")
        if self.ids.shape != (len(self.anchors),):
            raise DimensionMismatchError(
                f"ids must have shape ({len(self.anchors)},), got {self.ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.anchors)

    @property
    def other_id(self) -> int:
        """An id that no positive has."""
        return int(self.ids.min()) - 1

    def own_negatives(self, rows: NDArray[Any] | slice, count: int | None) -> Chosen:
        """Return the first `count` of the negatives of some anchors, or all."""
        assert self.own is not None
        items = self.own.take(rows)[:, :count]
        ids = np.full(items.shape[0] * items.shape[1], self.other_id)
        return Chosen(items.reshape(-1, *items.shape[2:]), ids, items.shape[1])

    def all_negatives(self) -> Chosen | None:
        """Return all that were given."""
        if self.own is not None:
            return self.own_negatives(slice(None), None)
        if self.pool is None:
            return None
        items = self.pool.take(slice(None))
        return Chosen(items, np.full(len(items), self.other_id), 0)

    def _check_row(self, shape: tuple[int, ...]) -> None:
        rest = self.positives.array.shape[1:]
        if shape != rest:
            raise DimensionMismatchError(
                f"negatives must hold items of shape {rest} like positives, got {shape}"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells these pairs from others, as JSON can keep it."""
        named = {
            "anchors": self.anchors,
            "positives": self.positives,
            "negatives": self.pool if self.own is None else self.own,
        }
        prints = {name: x.fingerprint() for name, x in named.items() if x is not None}
        return prints | {"ids": zlib.crc32(self.ids.tobytes())}

r"""The triplet hinge over every pair of an anchor and a negative, and its gradients.

For the Euclidean distances D and the margin m ::

    loss_i = mean_j max(0, D(a_i, p_i) - D(a_i, n_j) + m)

With ``W_ij = [hinge > 0] / (c_i D(a_i, n_j))``, c_i the number of negatives of row i and k_i
how many of its hinges are open, the gradients are again products with a matrix::

    da_i = k_i/c_i u_i - (sum_j W_ij) a_i + sum_j W_ij n_j       u_i = (a_i - p_i) / D(a_i, p_i)
    dp_i = -k_i/c_i u_i            dn_j = sum_i W_ij a_i - (sum_i W_ij) n_j

At a hinge of exactly 0 and at a distance of 0 the subgradient 0 is taken.

Arithmetic is float64, in tiles of anchors by negatives: three products by BLAS, and memory of a
few tiles. The two products of float32 gradients are taken in float32 where no open pair is so
close that the sums of the n_j and of a_i cancel. Negatives of each anchor's own are
subtracted, some anchors at a time. Both backends run this module: a compiled kernel would do
the same products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.contrastive import Ids
from ruvector._kernels.fallback._distances import row_dots, squared_distances
from ruvector._kernels.fallback._threads import blas_threads

__all__ = ["HingeGradients", "hinge"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

_ROWS, _COLUMNS = 256, 1024
_ELEMENTS = 1 << 18
# Pairs closer than this fraction of their squared norms are subtracted.
_CANCELLED = 1e-4
# Norms over the distance of an open pair below which the gradient's sums keep float32, and the
# norms whose inverses do.
_APART = 16.0
_LARGE = 2.0**60


class HingeGradients(NamedTuple):
    """The gradients of the loss; `negatives` is None where the batch is its own."""

    anchor: _Array
    positive: _Array
    negatives: _Array | None


def hinge(
    anchor: _Array,
    positive: _Array,
    negatives: _Array | None,
    margin: float,
    ids: Ids | None,
    weight: _Float64 | None,
    threads: int,
) -> tuple[_Float64, HingeGradients | None]:
    """Return the loss of every anchor, and gradients where rows have a weight.

    Arguments and results are those of ``contrastive.info_nce``, with a margin in the place of
    the temperature. A row without negatives loses nothing.
    """
    rows, dim = anchor.shape
    work = rows * dim * (rows if negatives is None else negatives.shape[-2])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        batch = _Batch(anchor, positive, margin, weight)
        if negatives is not None and negatives.ndim == 3:
            batch.against_own(negatives, ids)
        else:
            batch.against(positive if negatives is None else negatives, ids, negatives is None)
        return batch.losses, batch.gradients()


class _Batch:
    """The anchors of one call and the sums over the tiles."""

    def __init__(
        self, anchor: _Array, positive: _Array, margin: float, weight: _Float64 | None
    ) -> None:
        self._anchor, self._positive = anchor, positive
        self._margin = margin
        self._weight = weight
        self.losses = np.zeros(len(anchor))
        self._gradients: list[_Array | None] = [None, None, None]
        if weight is not None:
            self._gradients[:2] = np.zeros_like(anchor), np.zeros_like(positive)

    def gradients(self) -> HingeGradients | None:
        if self._weight is None:
            return None
        anchor, positive, negatives = self._gradients
        assert anchor is not None
        assert positive is not None
        return HingeGradients(anchor, positive, negatives)

    def against(self, keys: _Array, ids: Ids | None, in_batch: bool) -> None:
        """Walk tiles of anchors by shared negatives, or by the positives of the others."""
        gradient: _Array | None = None
        if self._weight is not None:
            gradient = self._gradients[1] if in_batch else np.zeros_like(keys)
            self._gradients[2] = None if in_batch else gradient
        counts = _counts(len(self._anchor), len(keys), ids, in_batch)
        for rows in _slices(len(self._anchor), _ROWS):
            part = _Rows(self, rows, counts[rows])
            for columns in _slices(len(keys), _COLUMNS):
                hidden = None if ids is None else _equal(ids, rows, columns)
                if in_batch:
                    hidden = _with_own(hidden, rows, columns)
                part.add_shared(
                    keys[columns], hidden, None if gradient is None else gradient[columns]
                )
            part.finish(*self._gradients[:2])

    def against_own(self, negatives: _Array, ids: Ids | None) -> None:
        """Walk anchors with the negatives that each of them has for itself."""
        count, dim = negatives.shape[1:]
        gradient = None if self._weight is None else np.empty_like(negatives)
        self._gradients[2] = gradient
        for rows in _slices(len(negatives), max(1, _ELEMENTS // max(1, count * dim))):
            hidden = None
            counts = np.full(rows.stop - rows.start, count)
            if ids is not None:
                hidden = ids.positive[rows, np.newaxis] == ids.negatives[rows]
                counts -= np.count_nonzero(hidden, axis=1)
            part = _Rows(self, rows, counts)
            part.add_own(negatives[rows], hidden, None if gradient is None else gradient[rows])
            part.finish(*self._gradients[:2])


class _Rows:
    """Some anchors while the tiles of their negatives pass."""

    def __init__(self, batch: _Batch, rows: slice, counts: NDArray[np.int64]) -> None:
        self._rows = rows
        self._raw = batch._anchor[rows]
        self._anchor = self._raw.astype(np.float64)
        self._unit = self._anchor - batch._positive[rows]
        distance = np.sqrt(row_dots(self._unit, self._unit))
        self._unit *= _inverse(distance)[:, np.newaxis]
        self._reach = distance + batch._margin
        share = 1.0 / np.maximum(counts, 1)
        self._losses = batch.losses[rows]
        self._mean = share
        self._share = None if batch._weight is None else batch._weight[rows] * share
        self._open = np.zeros(len(share))
        self._gradient = np.zeros_like(self._anchor)

    def add_shared(
        self, keys: _Array, hidden: NDArray[np.bool_] | None, gradient: _Array | None
    ) -> None:
        keys64 = keys.astype(np.float64)
        distances = squared_distances(self._anchor, keys64, _CANCELLED, self._raw, keys)
        np.sqrt(distances, out=distances)
        weights = self._add(distances, hidden)
        if weights is None or gradient is None:
            return
        seen = weights.any(axis=0, keepdims=True).T
        if not seen.all():
            keys, keys64 = np.where(seen, keys, 0), np.where(seen, keys64, 0)
        # W is NaN where NaN counts; elsewhere its 0 leaves none of the other vector.
        anchors64, keys64 = _finite(self._anchor), _finite(keys64)
        # The same rows in the type of the products.
        anchors, others = anchors64, keys64
        if self._are_apart(weights, keys):
            anchors, others = self._raw, keys
        weights = np.multiply(
            weights, self._share_of_rows(), dtype=anchors.dtype, casting="same_kind"
        )
        by_row, by_key = (weights.sum(axis=axis, dtype=np.float64) for axis in (1, 0))
        self._gradient += weights @ others
        self._gradient -= by_row[:, np.newaxis] * anchors64
        keys64 *= by_key[:, np.newaxis]
        gradient += np.subtract(weights.T @ anchors, keys64, out=keys64)

    def _are_apart(self, inverse: _Float64, keys: _Array) -> bool:
        """Return whether float32 keeps the products, given the inverse distances."""
        if self._raw.dtype != np.float32:
            return False
        squares = [row_dots(x, x).max(initial=0.0) for x in (self._raw, keys)]
        largest = np.sqrt(np.max(squares))  # NaN, and so False, if one is
        return bool(
            1 / _LARGE < largest < _LARGE and largest * inverse.max(initial=0.0) < _APART
        )

    def add_own(
        self, keys: _Array, hidden: NDArray[np.bool_] | None, gradient: _Array | None
    ) -> None:
        apart = self._anchor[:, np.newaxis] - keys
        distances = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart))
        finite = np.isfinite(distances).all()
        weights = self._add(distances, hidden)
        if weights is None or gradient is None:
            return
        weights *= self._share_of_rows()
        if not finite:
            apart[weights == 0] = 0
        apart *= weights[..., np.newaxis]
        gradient[...] = apart
        self._gradient -= apart.sum(axis=1)

    def _add(self, distances: _Float64, hidden: NDArray[np.bool_] | None) -> _Float64 | None:
        """Add the hinges of a tile; distances become 1 / D(a_i, n_j) where open, else 0."""
        hinges = self._reach[:, np.newaxis] - distances
        closed = hinges <= 0
        if hidden is not None:
            closed |= hidden
        np.copyto(hinges, 0, where=closed)
        self._losses += hinges.sum(axis=1) * self._mean
        if self._share is None:
            return None
        self._open += distances.shape[1] - np.count_nonzero(closed, axis=1)
        closed |= distances == 0
        np.divide(1, distances, out=distances)
        np.copyto(distances, 0, where=closed)
        return distances

    def _share_of_rows(self) -> _Float64:
        """Give what the rows of 1 / D are multiplied by to become W of the weighted loss."""
        assert self._share is not None
        return self._share[:, np.newaxis]

    def finish(self, anchor: _Array | None, positive: _Array | None) -> None:
        if anchor is None or positive is None or self._share is None:
            return
        pull = (self._open * self._share)[:, np.newaxis] * self._unit
        anchor[self._rows] = self._gradient + pull
        positive[self._rows] -= pull.astype(positive.dtype)


def _counts(rows: int, keys: int, ids: Ids | None, in_batch: bool) -> NDArray[np.int64]:
    """Count the negatives of every anchor."""
    if ids is None:
        return np.full(rows, keys - in_batch)
    known = np.sort(ids.negatives)
    first, last = (np.searchsorted(known, ids.positive, side) for side in ("left", "right"))
    return np.asarray(keys - (last - first), np.int64)


def _equal(ids: Ids, rows: slice, columns: slice) -> NDArray[np.bool_]:
    return np.asarray(ids.positive[rows, np.newaxis] == ids.negatives[columns])


def _with_own(
    hidden: NDArray[np.bool_] | None, rows: slice, columns: slice
) -> NDArray[np.bool_]:
    """Hide the positive that an anchor has in the batch."""
    if hidden is None:
        hidden = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
    hidden[own - rows.start, own - columns.start] = True
    return hidden


def _finite(x: _Float64) -> _Float64:
    return x if np.isfinite(x).all() else np.where(np.isfinite(x), x, 0)


def _inverse(distances: _Float64) -> _Float64:
    """Return 1 / distance, and 0 for a distance of 0."""
    return np.divide(1, distances, out=np.zeros_like(distances), where=distances != 0)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, count)) for i in range(0, count, step))

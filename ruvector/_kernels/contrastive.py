r"""InfoNCE and its gradients: softmax attention from anchors to the vectors they are told from.

For unit vectors a of anchors, p of positives and n of negatives and the temperature t ::

    s_ij = a_i . n_j / t          s_i+ = a_i . p_i / t
    loss_i = log(exp(s_i+) + sum_j exp(s_ij)) - s_i+

(van den Oord et al. 2018, arXiv 1807.03748). The sum over j is L of attention with the scale
1 / t. With the keys as values the output is ``o_i = sum_j P_ij n_j``, which is all that the
anchor's gradient needs, and the gradient of the keys is that of attention through L alone::

    da_i = w_i (o_i - p_i) / t       dp_i = -w_i a_i / t       dn_j = sum_i w_i P_ij a_i / t
    dt = -sum_i a_i . da_i / t

In the batch the positives are the keys, L is the whole logarithm and ``w_i = g_i``, the weight
of row i in the loss. Among separate negatives L is theirs,
``loss_i = log(1 + exp(L_i - s_i+))`` and ``w_i = g_i (1 - exp(-loss_i))``. A unit vector
``y = x / |x|`` passes on ``dx = (dy - (dy . y) y) / |x|``.

The engine does it in four matrix products, where holding P would take three, and in memory of
O(rows): neither the scores nor P are ever stored. Both backends run this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector import _kernels
from ruvector._kernels.fallback._distances import row_dots
from ruvector._kernels.spec import AttentionSpec

__all__ = ["Ids", "InfoNCEGradients", "info_nce"]

_Array = NDArray[Any]
_Float64 = NDArray[np.float64]

# Entries of a mask, and of an array of vectors, that are worked on at a time.
_MASK = 1 << 24
_NEGATIVES = 1 << 19
_BLOCK = 1 << 16


class Ids(NamedTuple):
    """What the anchors' positives and the negatives are; equal ones are no negatives.

    In the batch both are the same array.
    """

    positive: NDArray[np.int64]
    negatives: NDArray[np.int64]


class InfoNCEGradients(NamedTuple):
    """The gradients of the loss; `negatives` is None where the batch is its own."""

    anchor: _Array
    positive: _Array
    negatives: _Array | None
    temperature: float


def info_nce(
    anchor: _Array,
    positive: _Array,
    negatives: _Array | None,
    temperature: float,
    ids: Ids | None,
    weight: _Float64 | None,
    threads: int,
) -> tuple[_Float64, InfoNCEGradients | None] | None:
    """Return the loss of every anchor, and gradients where rows have a weight.

    None where a vector is zero, which has no direction.

    Parameters
    ----------
    anchor, positive : ndarray, shape (B, d)
        float32 or float64, C-contiguous, as all arrays here.
    negatives : ndarray, shape (N, d) or (B, N, d), or None
        Shared, for each anchor, or the positives of the others.
    temperature : float
        Positive.
    ids : Ids or None
        Shapes ``(B,)`` and ``(N,)``, ``(B, N)`` or, in the batch, ``(B,)``.
    weight : ndarray of float64, shape (B,), or None
        What each loss counts in the sum whose gradients are returned.
    threads : int
        At most so many threads are used.

    Returns
    -------
    losses : ndarray of float64, shape (B,)
    gradients : InfoNCEGradients or None
    """
    with np.errstate(all="ignore"):
        norms = [_norms(x) for x in (anchor, positive, negatives) if x is not None]
        if not all(lengths.all() for lengths in norms):
            return None
        batch = _Batch(anchor, positive, norms, temperature, weight, threads)
        if negatives is None:
            batch.among_positives(ids)
        elif negatives.ndim == 2:
            batch.among_shared(negatives, ids)
        else:
            batch.among_own(negatives, ids)
        return batch.losses, batch.gradients()


class _Batch:
    """The anchors of one call: their unit vectors, their state, and what comes of it."""

    def __init__(
        self,
        anchor: _Array,
        positive: _Array,
        norms: list[_Array],
        temperature: float,
        weight: _Float64 | None,
        threads: int,
    ) -> None:
        self._norms = norms
        self._anchor, self._positive = _unit(anchor), _unit(positive)
        self._temperature = temperature
        self._spec = AttentionSpec(scale=1 / temperature)
        self._weight = None if weight is None else weight.copy()
        self._threads = threads
        rows, dim = anchor.shape
        self._similarity = row_dots(self._anchor, self._positive)
        self._out = np.empty((rows, 0 if weight is None else dim), anchor.dtype)
        self._lse = np.empty(rows, anchor.dtype)
        self._positive_gradient: _Array | None = None
        self._negatives_gradient: _Array | None = None
        self.losses = np.empty(rows)

    def among_positives(self, ids: Ids | None) -> None:
        """Tell every anchor's positive from those of the others."""
        if ids is not None and len(np.unique(ids.positive)) == len(ids.positive):
            ids = None
        self._attend(self._positive, ids)
        np.subtract(self._lse, self._similarity / self._temperature, out=self.losses)
        # Two roundings of the same score may differ where nothing else counts.
        np.maximum(self.losses, 0, out=self.losses)
        if self._weight is not None:
            self._positive_gradient = self._key_gradient(self._positive, ids)

    def among_shared(self, negatives: _Array, ids: Ids | None) -> None:
        """Tell every positive from the same negatives."""
        keys = _unit(negatives)
        self._attend(keys, ids)
        self._weigh(slice(None))
        if self._weight is not None:
            gradient = self._key_gradient(keys, ids)
            _through_norm(gradient, keys, self._norms[2])
            self._negatives_gradient = gradient

    def among_own(self, negatives: _Array, ids: Ids | None) -> None:
        """Tell every positive from negatives of its own, some anchors at a time."""
        count, dim = negatives.shape[1:]
        if self._weight is not None:
            self._negatives_gradient = np.empty_like(negatives)
        for rows in _blocks(len(negatives), count * dim, _NEGATIVES):
            part = negatives[rows].reshape(-1, dim)
            unit = _unit(part)
            keys = unit.reshape(-1, 1, count, dim)
            query = self._anchor[rows, np.newaxis, np.newaxis]
            lse = self._lse[rows, np.newaxis, np.newaxis]
            spec = self._spec
            if ids is not None:
                shown = ids.positive[rows, np.newaxis] != ids.negatives[rows]
                spec = replace(spec, mask=shown[:, np.newaxis, np.newaxis])
            out = self._out[rows, np.newaxis, np.newaxis]
            values = keys[..., : out.shape[-1]]
            _kernels.softmax.attend(query, keys, values, out, lse, spec, self._threads)
            self._weigh(rows)
            if self._negatives_gradient is not None:
                share = np.empty((len(keys), 1, 1, count), keys.dtype)
                _kernels.softmax.weights(query, keys, share, spec, self._threads)
                self._spread(rows, keys[:, 0], share[:, 0, 0])

    def _spread(self, rows: slice, unit: _Array, share: _Array) -> None:
        """Write the gradients of an anchor's own negatives: w P (a - (a.n) n) / (t |n|)."""
        assert self._weight is not None
        assert self._negatives_gradient is not None
        anchor, hidden = self._anchor[rows], share == 0
        share *= (self._weight[rows] / self._temperature).astype(share.dtype)[:, np.newaxis]
        share /= self._norms[2].reshape(-1, share.shape[1])[rows]
        gradient = self._negatives_gradient[rows]
        along = share * np.einsum("bnd,bd->bn", unit, anchor)
        np.multiply(unit, -along[..., np.newaxis], out=gradient)
        gradient += share[..., np.newaxis] * anchor[:, np.newaxis]
        if not np.isfinite(along).all():
            gradient[hidden] = 0

    def gradients(self) -> InfoNCEGradients | None:
        """Finish the gradients, in place."""
        if self._weight is None:
            return None
        anchor_norms, positive_norms = self._norms[:2]
        factor = (self._weight / self._temperature).astype(self._out.dtype)
        positive_gradient = self._positive_gradient
        if positive_gradient is None:
            positive_gradient = np.zeros_like(self._positive)
        along = np.empty(len(factor), self._out.dtype)
        for rows in _blocks(len(factor), self._out.shape[1], _BLOCK):
            share = factor[rows, np.newaxis]
            gradient = self._out[rows]
            gradient -= self._positive[rows]
            gradient *= share
            positive_gradient[rows] -= share * self._anchor[rows]
            along[rows] = _project(gradient, self._anchor[rows], anchor_norms[rows])
            _project(positive_gradient[rows], self._positive[rows], positive_norms[rows])
        return InfoNCEGradients(
            self._out,
            positive_gradient,
            self._negatives_gradient,
            -float(along.sum(dtype=np.float64)) / self._temperature,
        )

    def _weigh(self, rows: slice) -> None:
        """Turn the negatives' L into losses, and weights into what moves the scores."""
        gap = self._lse[rows] - self._similarity[rows] / self._temperature
        self.losses[rows] = np.logaddexp(0, gap)
        if self._weight is not None:
            self._weight[rows] *= -np.expm1(-self.losses[rows])

    def _attend(self, keys: _Array, ids: Ids | None) -> None:
        values = keys[:, : self._out.shape[1]]
        for rows, spec in self._masked_rows(ids, len(keys)):
            _kernels.softmax.attend(
                _headed(self._anchor[rows]),
                _headed(keys),
                _headed(values),
                _headed(self._out[rows]),
                _headed(self._lse[rows]),
                spec,
                self._threads,
            )

    def _key_gradient(self, keys: _Array, ids: Ids | None) -> _Array:
        """Return the gradient of unit keys: through L alone, as if values had no entries."""
        assert self._weight is not None
        gradient = np.empty_like(keys)
        query, lse = _headed(self._anchor), _headed(self._lse)
        grad_lse = _headed(self._weight.astype(self._lse.dtype))
        nothing = np.empty((*lse.shape, 0), lse.dtype)
        for block, spec in self._masked_keys(ids, len(keys)):
            key = _headed(keys[block])
            _kernels.softmax_backward.attend_backward(
                query, key, key[..., :0], nothing, lse, nothing, grad_lse, None,
                _headed(gradient[block]), None, None, None, None, spec, self._threads,
            )  # fmt: skip
        return gradient

    def _masked_rows(self, ids: Ids | None, keys: int) -> Iterator[tuple[slice, AttentionSpec]]:
        if ids is None:
            yield slice(None), self._spec
            return
        for rows in _blocks(len(ids.positive), keys, _MASK):
            yield rows, self._masked(ids, rows, slice(0, keys))

    def _masked_keys(self, ids: Ids | None, keys: int) -> Iterator[tuple[slice, AttentionSpec]]:
        if ids is None:
            yield slice(None), self._spec
            return
        for block in _blocks(keys, len(ids.positive), _MASK):
            yield block, self._masked(ids, slice(0, len(ids.positive)), block, by_key=True)

    def _masked(
        self, ids: Ids, rows: slice, keys: slice, *, by_key: bool = False
    ) -> AttentionSpec:
        """Hide what is the same, laid out as the engine will read it: by rows or by keys."""
        if by_key:
            shown = (ids.negatives[keys, np.newaxis] != ids.positive[rows]).T
        else:
            shown = ids.positive[rows, np.newaxis] != ids.negatives[keys]
        if ids.negatives is ids.positive:
            # In the batch an anchor's own positive is among the keys.
            own = np.arange(max(rows.start, keys.start), min(rows.stop, keys.stop))
            shown[own - rows.start, own - keys.start] = True
        return replace(self._spec, mask=shown[np.newaxis, np.newaxis])


def _headed(array: _Array) -> _Array:
    return array[np.newaxis, np.newaxis]


def _norms(x: _Array) -> _Array:
    rows = x.reshape(-1, x.shape[-1])
    norms = np.empty(len(rows), x.dtype)
    _kernels.utils.l2_norm(rows, norms)
    return norms


def _unit(x: _Array) -> _Array:
    unit = np.empty_like(x)
    _kernels.utils.normalize(x, unit)
    return unit


def _through_norm(gradient: _Array, unit: _Array, norms: _Array) -> None:
    for rows in _blocks(len(unit), unit.shape[1], _BLOCK):
        _project(gradient[rows], unit[rows], norms[rows])


def _project(gradient: _Array, unit: _Array, norms: _Array) -> _Array:
    """Turn gradients of unit vectors into those of the vectors, in place.

    Returns their components along the unit vectors, which are lost.
    """
    along: _Array = np.einsum("ij,ij->i", gradient, unit)
    # A hidden vector has no gradient, not even where it holds NaN.
    hidden = None if np.isfinite(along).all() else ~gradient.any(axis=1)
    gradient -= along[:, np.newaxis] * unit
    gradient /= norms[:, np.newaxis]
    if hidden is not None:
        gradient[hidden] = 0
    return along


def _blocks(rows: int, width: int, size: int) -> Iterator[slice]:
    step = max(1, size // max(1, width))
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))

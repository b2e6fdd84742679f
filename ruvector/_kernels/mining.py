r"""Which candidates make good negatives for an anchor: ranked, bounded by distance, or drawn.

``hard``
    The candidates with the largest cosine.
``semi_hard``
    Those with ``D(a, p) < D(a, n) < D(a, p) + margin``, nearest first (Schroff et al. 2015,
    arXiv 1503.03832; D Euclidean, p the farthest positive). Where they are f < k, the k - f
    hardest follow, less those that are there already.
``distance_weighted``
    Drawn without replacement with weights q(d)^(-1/t), where ::

        log q(d) = (n - 2) log d + (n - 3)/2 log(1 - d^2/4)

    is the density of the distance between two points of the unit sphere in n dimensions (Wu et
    al. 2017, arXiv 1706.07567), for the distance d of the unit vectors, but not below a cutoff.
``random``
    Drawn without replacement, all alike.

A draw gives candidate j the key ``log w_j - log E_j``, E exponential, and takes the largest
keys: those of the successive draws (Efraimidis and Spirakis 2006).

Candidates that equal a positive of the anchor are not taken. Rows are worked on in blocks, each
a matrix product and a partial selection; memory is that of a block of scores, and for ``hard``,
which the attention engine ranks, O(k) a row. Both backends run this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector import _kernels
from ruvector._kernels.fallback._distances import squared_distances
from ruvector._kernels.fallback._ranking import largest
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.spec import AttentionSpec

__all__ = [
    "Positives",
    "distance_weighted",
    "hard",
    "others",
    "positives_among",
    "random",
    "semi_hard",
]

_Array = NDArray[Any]
_Integers = NDArray[np.int64]

# Scores of a block, and candidates whose distances are formed at a time.
_BLOCK = 1 << 22
_COLUMNS = 1024
_CANCELLED = 1e-6
# The score of what is no candidate, below every distance.
_NOWHERE = -1e300
# What is left of 1 - d^2/4 for opposite vectors.
_LEAST = 1e-8


class Positives(NamedTuple):
    """Where candidates equal positives: pairs of an anchor and a candidate, by anchor."""

    anchors: _Integers
    candidates: _Integers


def positives_among(positives: _Array, candidates: _Array) -> Positives:
    """Find the candidates that equal, bit for bit, one of the positives ``(B, p, d)``."""
    rows, count, dim = positives.shape
    ours = np.ascontiguousarray(positives).reshape(rows * count, dim)
    keys, known = _checksums(ours), _checksums(candidates)
    order = np.argsort(known, kind="stable")
    known = known[order]
    first, last = (np.searchsorted(known, keys, side) for side in ("left", "right"))
    found = last - first
    pairs = np.repeat(np.arange(len(ours)), found)
    within = np.arange(len(pairs)) - np.repeat(np.cumsum(found) - found, found)
    matches = order[np.repeat(first, found) + within]
    equal = np.empty(len(pairs), np.bool_)
    for part in _slices(len(pairs), max(1, _BLOCK // max(1, dim))):
        equal[part] = (_bits(ours[pairs[part]]) == _bits(candidates[matches[part]])).all(axis=1)
    return Positives(pairs[equal] // count, matches[equal])


def hard(query: _Array, key: _Array, k: int, positives: Positives, threads: int) -> _Integers:
    """Return the k keys with the largest product, largest first, then -1; ``(B, k)``.

    `query` ``(B, d)`` and `key` ``(N, d)`` are the unit vectors of anchors and candidates. Of
    equal keys the first comes first.
    """
    found = np.empty((len(query), k), np.int64)
    unused = np.empty((len(query), k), query.dtype)
    whole = not len(positives.anchors)
    blocks = [slice(0, len(query))] if whole else _rows(query, key)
    for rows in blocks:
        hidden = _hidden(positives, rows, len(key))
        mask = None if hidden is None else ~hidden[np.newaxis, np.newaxis]
        _kernels.softmax.top_k(
            query[np.newaxis, np.newaxis, rows],
            key[np.newaxis, np.newaxis],
            k,
            found[np.newaxis, np.newaxis, rows],
            unused[np.newaxis, np.newaxis, rows],
            AttentionSpec(scale=1.0, mask=mask),
            threads,
        )
    return found


def semi_hard(
    anchor: _Array,
    positive: _Array,
    candidates: _Array,
    fill: _Integers,
    margin: float,
    positives: Positives,
    threads: int,
) -> _Integers:
    """Return semi-hard candidates, then those of `fill`, then -1; ``(B, k)``.

    `positive` is ``(B, p, d)``, `fill` the ``(B, k)`` hardest candidates.
    """
    found = np.empty_like(fill)
    # All different, because a partial selection among equal numbers takes fifty times longer.
    filler = _NOWHERE * (1 + np.arange(len(candidates)) / len(candidates))
    work = anchor.size * len(candidates)
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for rows in _rows(anchor, candidates):
            apart = anchor[rows, np.newaxis].astype(np.float64) - positive[rows]
            near = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart)).max(axis=1)[:, np.newaxis]
            score = -_distances(anchor[rows], candidates)
            hidden = _hidden(positives, rows, len(candidates))
            outside = ~((score < -near) & (score > -(near + margin)))
            if hidden is not None:
                outside |= hidden
            np.copyto(score, filler, where=outside)
            found[rows] = _merged(score, fill[rows])
    return found


def distance_weighted(
    query: _Array,
    key: _Array,
    k: int,
    temperature: float,
    cutoff: float,
    positives: Positives,
    rng: np.random.Generator,
    threads: int,
) -> _Integers:
    """Draw k keys by their distance on the unit sphere, then -1; ``(B, k)``.

    `query` and `key` are as in `hard`.
    """
    dim = query.shape[1]

    def log_weights(rows: slice) -> _Array:
        half = query[rows] @ key.T
        # (1 + cos) / 2 is 1 - d^2/4, and four times the rest of it d^2.
        half += 1
        half *= 0.5
        square = np.maximum(4 * (1 - half), max(cutoff, 1e-4) ** 2)
        density: _Array = np.log(square, out=square)
        density *= (dim - 2) / 2
        np.maximum(half, _LEAST, out=half)
        density += (dim - 3) / 2 * np.log(half, out=half)
        density *= -1 / temperature
        return density

    with blas_threads(threads, query.size * len(key)), np.errstate(all="ignore"):
        return _drawn(query, key, k, log_weights, positives, rng)


def random(
    anchor: _Array, candidates: _Array, k: int, positives: Positives, rng: np.random.Generator
) -> _Integers:
    """Draw k candidates, all alike, then -1; ``(B, k)``."""
    with np.errstate(all="ignore"):
        return _drawn(anchor, candidates, k, lambda rows: 0, positives, rng)


def others(anchors: _Integers, excluded: _Integers, size: int) -> _Integers:
    """Return the rows below `size` but for two of each anchor; -1 behind the fewer ones."""
    width = size - int(1 + (anchors != excluded).min())
    kept = np.ones((len(anchors), size), np.bool_)
    for index in (anchors, excluded):
        np.put_along_axis(kept, index[:, np.newaxis], False, axis=1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :width]
    return np.where(np.take_along_axis(kept, order, axis=1), order, -1)


def _drawn(
    anchor: _Array,
    candidates: _Array,
    k: int,
    log_weights: Callable[[slice], Any],
    positives: Positives,
    rng: np.random.Generator,
) -> _Integers:
    found = np.empty((len(anchor), k), np.int64)
    for rows in _rows(anchor, candidates):
        shape = rows.stop - rows.start, len(candidates)
        # NaN, from vectors that hold it, is drawn last.
        keys = np.log(rng.standard_exponential(shape, dtype=anchor.dtype.type))
        np.subtract(log_weights(rows), keys, out=keys)
        keys[np.isnan(keys)] = -np.inf
        hidden = _hidden(positives, rows, len(candidates))
        if hidden is not None:
            keys[hidden] = -np.inf
        found[rows] = _best(keys, k, -np.inf)
    return found


def _best(scores: _Array, k: int, least: float) -> _Integers:
    """Return the columns of the k largest scores, -1 for those up to `least` and for none."""
    columns = largest(scores, k)[:, :k]
    columns[np.take_along_axis(scores, columns, axis=1) <= least] = -1
    missing = k - columns.shape[1]
    return np.pad(columns, ((0, 0), (0, missing)), constant_values=-1) if missing else columns


def _merged(scores: _Array, fill: _Integers) -> _Integers:
    """Put the k - f first of `fill` behind the f found, less those that are found already."""
    k = fill.shape[1]
    found = _best(scores, k, _NOWHERE)
    count = np.count_nonzero(found >= 0, axis=1)[:, np.newaxis]
    taken = np.zeros((len(found), scores.shape[1] + 1), np.bool_)
    # The column beyond the last stands for none.
    np.put_along_axis(taken, found, True, axis=1)
    extra = np.where(np.arange(k) < k - count, fill, -1)
    extra[np.take_along_axis(taken, extra, axis=1)] = -1
    both = np.concatenate((found, extra), axis=1)
    order = np.argsort(both < 0, axis=1, kind="stable")
    return np.take_along_axis(both, order, axis=1)[:, :k]


def _distances(anchor: _Array, candidates: _Array) -> NDArray[np.float64]:
    distances = np.empty((len(anchor), len(candidates)))
    a = anchor.astype(np.float64)
    for part in _slices(len(candidates), _COLUMNS):
        b = candidates[part].astype(np.float64)
        distances[:, part] = squared_distances(a, b, _CANCELLED, anchor, candidates[part])
    return np.sqrt(distances, out=distances)


def _hidden(positives: Positives, rows: slice, count: int) -> NDArray[np.bool_] | None:
    """Mark what equals a positive of these anchors, None where nothing does."""
    first, last = np.searchsorted(positives.anchors, (rows.start, rows.stop))
    if first == last:
        return None
    hidden = np.zeros((rows.stop - rows.start, count), np.bool_)
    pairs = slice(first, last)
    hidden[positives.anchors[pairs] - rows.start, positives.candidates[pairs]] = True
    return hidden


def _checksums(x: _Array) -> NDArray[np.uint32]:
    """Return a number of every row that equal rows share, and others hardly ever."""
    bits = _bits(x)
    factors = np.random.default_rng(0).integers(1 << 32, size=bits.shape[1], dtype=np.uint32)
    return np.asarray(np.einsum("ij,j->i", bits, factors | 1))


def _bits(x: _Array) -> NDArray[np.uint32]:
    return x.view(np.uint32)


def _rows(anchor: _Array, candidates: _Array) -> Iterator[slice]:
    return _slices(len(anchor), max(1, _BLOCK // max(1, len(candidates))))


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(i, min(i + step, count)) for i in range(0, count, step))

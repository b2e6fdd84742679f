r"""Softmax attention as a stream of key tiles: the NumPy twin of the compiled engine.

For every query row, over the keys it sees (:mod:`ruvector._kernels.spec` says which, and
how a score is made) ::

    o = sum_j exp(s_j - L) v_j          L = ln sum_j exp(s_j)

computed as FlashAttention-2 does (Dao 2023, arXiv 2307.08691) with the online softmax: the
running maximum m, the sum l and the accumulator are rescaled by ``exp(m_old - m_new)`` as
tiles raise the maximum. Cost is two matrix products, ``4 Lq Lk D`` floating-point
operations, done by BLAS; memory is a few tiles of a megabyte, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _storage
from ruvector._kernels.fallback._ball import BallPart
from ruvector._kernels.fallback._online import Normaliser, zero_point
from ruvector._kernels.fallback._plain import attend_plain
from ruvector._kernels.fallback._ranking import largest
from ruvector._kernels.fallback._sequences import sequences
from ruvector._kernels.fallback._threads import blas_threads
from ruvector._kernels.fallback._tiles import Block, blocks
from ruvector._kernels.spec import AttentionSpec, BallSpec

__all__ = [
    "attend",
    "attend_ball",
    "attend_plain",
    "merge",
    "top_k",
    "weights",
    "weights_ball",
]

_Array = NDArray[Any]

# Numbers of one part that are merged at a time.
_MERGED = 1 << 18


def _multiply_adds(query: _Array, key: _Array, width: int) -> int:
    batch, heads, num_queries, dim = query.shape
    return int(batch * heads * num_queries * key.shape[2] * (dim + width))


def attend(
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array | None,
    spec: AttentionSpec,
    threads: int,
) -> None:
    """Compute the attention state (o, L) of every query row.

    Parameters
    ----------
    query : ndarray, shape (B, H, Lq, D)
        float32, float64, float16, or uint16 holding the bits of bfloat16. Any strides on
        the first three axes, zero and negative included; the last axis contiguous.
    key : ndarray, shape (B, Hkv, Lk, D)
        Of the query's dtype; beside float32 queries also float16, bfloat16 or, with scales in
        `spec`, int8. Query head ``h`` reads head ``h // (H // Hkv)``.
    value : ndarray, shape (B, Hkv, Lk, Dv)
        Of the key's dtype.
    out : ndarray, shape (B, H, Lq, Dv)
        Takes o, in the query's dtype. Overlaps no input.
    lse : ndarray, shape (B, H, Lq), or None
        Takes L: float64 for float64, else float32.
    spec : AttentionSpec
        Score function and visible set. Ragged problems have ``B == 1`` and their sequences
        one after another along Lq and Lk, those of bias, mask and positions too.
    threads : int
        How many threads BLAS may use.
    """
    work = _multiply_adds(query, key, value.shape[3])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        for q, k, own in sequences(spec):
            _attend(
                query[:, :, q],
                key[:, :, k],
                value[:, :, k],
                out[:, :, q],
                None if lse is None else lse[:, :, q],
                own,
            )


def _attend(
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array | None,
    spec: AttentionSpec,
) -> None:
    dtype = _storage.compute_dtype(query)
    _average(blocks(query, key, value, value.shape[3], spec), (out,), lse, spec, dtype)


def _average(
    parts: Iterator[Block],
    outputs: tuple[_Array, ...],
    lse: _Array | None,
    spec: AttentionSpec,
    dtype: np.dtype[Any],
) -> None:
    """Write what each block sums, normalised, to `outputs` side by side."""
    widths = [output.shape[3] for output in outputs]
    for block in parts:
        normaliser = Normaliser(block, spec, dtype)
        total = np.zeros((*block.lines, sum(widths)), dtype)
        for tile in block.tiles():
            total *= normaliser.update(tile.scores)
            total += block.weigh(tile)
        average = normaliser.divide(total)
        start = 0
        for output, width in zip(outputs, widths, strict=True):
            _storage.store(output[block.place], average[..., start : start + width])
            start += width
        if lse is not None:
            lse[block.place] = normaliser.lse()


def attend_ball(
    query: _Array | None,
    key: _Array | None,
    value: _Array | None,
    out: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    ball_value: _Array,
    ball_out: _Array,
    lse: _Array | None,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None:
    """Compute the attention state of every query row with a part in the Poincare ball.

    Parameters
    ----------
    query, key : ndarray, or None
        As in `attend`; None where scores have no dot product.
    value, out : ndarray, or None
        As in `attend`; None where nothing is averaged as it is.
    ball_query : ndarray, shape (B, H, Lq, Dh)
        Of the storage type and strides of `query` in `attend`, as are the next two.
    ball_key : ndarray, shape (B, Hkv, Lk, Dh)
        Keys in the ball.
    ball_value : ndarray, shape (B, Hkv, Lk, Dhv)
        Values in the ball.
    ball_out : ndarray, shape (B, H, Lq, Dhv + 1)
        Takes the average of ``[lambda x(v), lambda - 1]``, in the compute type; zeros for a
        row that sees nothing.
    lse : ndarray, shape (B, H, Lq), or None
        As in `attend`.
    spec : AttentionSpec
        Score function and visible set; not ragged.
    ball : BallSpec
        How rows are read as points, and what their distance counts.
    threads : int
        How many threads BLAS may use.
    """
    if query is None or key is None:
        query, key = ball_query[..., :0], ball_key[..., :0]
    outputs: tuple[_Array, ...] = (ball_out,)
    if value is None or out is None:
        value = ball_value[..., :0]
    else:
        outputs = (out, ball_out)
    part = BallPart(ball_query, ball_key, ball_value, ball)
    width = value.shape[3] + ball_out.shape[3]
    work = _multiply_adds(query, key, width + ball_query.shape[3])
    dtype = _storage.compute_dtype(ball_query)
    with blas_threads(threads, work), np.errstate(all="ignore"):
        parts = blocks(query, key, value, width, spec, part)
        _average(parts, outputs, lse, spec, dtype)


def weights(query: _Array, key: _Array, out: _Array, spec: AttentionSpec, threads: int) -> None:
    """Compute the softmax probabilities of every query row, hidden keys 0.

    Parameters
    ----------
    query : ndarray, shape (B, H, Lq, D)
        As in `attend`.
    key : ndarray, shape (B, Hkv, Lk, D)
        As in `attend`.
    out : ndarray, shape (B, H, Lq, Lk)
        Takes ``exp(s - L)``: float64 for float64, else float32; the last axis contiguous.
        With sink logits a row sums to less than 1.
    spec : AttentionSpec
        Score function and visible set; not ragged.
    threads : int
        How many threads BLAS may use.
    """
    with blas_threads(threads, _multiply_adds(query, key, 0)), np.errstate(all="ignore"):
        _weights(blocks(query, key, None, 0, spec), out, spec)


def weights_ball(
    query: _Array | None,
    key: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    out: _Array,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None:
    """Compute the softmax probabilities of every query row, hidden keys 0, with a ball.

    Parameters
    ----------
    query, key, ball_query, ball_key, spec, ball, threads
        As in `attend_ball`.
    out : ndarray, shape (B, H, Lq, Lk)
        As in `weights`.
    """
    if query is None or key is None:
        query, key = ball_query[..., :0], ball_key[..., :0]
    part = BallPart(ball_query, ball_key, None, ball)
    work = _multiply_adds(query, key, ball_query.shape[3])
    with blas_threads(threads, work), np.errstate(all="ignore"):
        _weights(blocks(query, key, None, 0, spec, part), out, spec)


def _weights(parts: Iterator[Block], out: _Array, spec: AttentionSpec) -> None:
    out[...] = -np.inf
    for block in parts:
        normaliser = Normaliser(block, spec, out.dtype)
        place = out[block.place]
        for start, stop, scores in block.tiles():
            place[..., start:stop] = scores.reshape(*block.shape, stop - start)
            normaliser.update(scores)
        normaliser.weigh(place)


def top_k(
    query: _Array,
    key: _Array,
    k: int,
    indices: NDArray[np.int64],
    weights: _Array,
    spec: AttentionSpec,
    threads: int,
) -> None:
    """Find the k most attended keys of every query row.

    Parameters
    ----------
    query : ndarray, shape (B, H, Lq, D)
        As in `attend`.
    key : ndarray, shape (B, Hkv, Lk, D)
        As in `attend`.
    k : int
        How many keys.
    indices : ndarray of int64, shape (B, H, Lq, k)
        Takes the keys' indices, by descending score, equal scores by ascending index; -1
        where a row sees fewer than k keys.
    weights : ndarray, shape (B, H, Lq, k)
        Takes their weights, normalised over every visible key and the sink logit; 0 beside
        an index of -1. float64 for float64, else float32.
    spec : AttentionSpec
        Score function and visible set; not ragged.
    threads : int
        How many threads BLAS may use.
    """
    dtype = _storage.compute_dtype(query)
    with blas_threads(threads, _multiply_adds(query, key, 0)), np.errstate(all="ignore"):
        for block in blocks(query, key, None, 3 * k, spec):
            normaliser = Normaliser(block, spec, dtype)
            best = np.full((*block.lines, k), -np.inf, dtype)
            found = np.full((*block.lines, k), -1, np.int64)
            for start, _, scores in block.tiles():
                # A NaN is somewhere in a row that is NaN as a whole: let it come first.
                np.fmin(scores, np.inf, out=scores)
                columns = largest(scores, k)
                best = np.concatenate(
                    (best, np.take_along_axis(scores, columns, axis=-1)), axis=-1
                )
                found = np.concatenate((found, columns + start), axis=-1)
                columns = largest(best, k)
                best = np.take_along_axis(best, columns, axis=-1)
                found = np.take_along_axis(found, columns, axis=-1)
                normaliser.update(scores)
            found[best == -np.inf] = -1
            normaliser.weigh(best)
            shape = (*block.shape, k)
            weights[block.place] = best.reshape(shape)
            indices[block.place] = found.reshape(shape)


def merge(outputs: _Array, lses: _Array, out: _Array, lse: _Array) -> None:
    """Combine the attention states of disjoint key sets, in index order.

    Parameters
    ----------
    outputs : ndarray, shape (P, R, Dv)
        o of each part: float32, float64, float16 or the bits of bfloat16.
    lses : ndarray, shape (P, R)
        L of each part, float32 or float64. A part with -inf takes no part, even where its
        o is NaN.
    out : ndarray, shape (R, Dv)
        Takes the merged o; the zeros of the identity where no part saw a key.
    lse : ndarray, shape (R,)
        Takes the merged L; -inf where no part saw a key.
    """
    parts, num_rows, width = outputs.shape
    step = max(1, _MERGED // max(1, width))
    with np.errstate(all="ignore"):
        for i in range(0, num_rows, step):
            rows = slice(i, min(i + step, num_rows))
            own = lses[:, rows]
            maximum = own.max(axis=0, initial=-np.inf)
            shares = np.exp(own - zero_point(maximum))
            whole = np.zeros(len(maximum), lses.dtype)
            total = np.zeros((len(maximum), width), lses.dtype)
            for p in range(parts):
                whole += shares[p]
                part = shares[p, :, np.newaxis] * _storage.widen(outputs[p, rows])
                part[own[p] == -np.inf] = 0
                total += part
            total /= np.where(whole == 0, 1, whole)[:, np.newaxis]
            _storage.store(out[rows], total)
            lse[rows] = maximum + np.log(whole)

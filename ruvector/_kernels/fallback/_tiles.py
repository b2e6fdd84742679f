"""Blocks of query rows and their scores against one key tile after another.

The work is cut so that the scores of one tile (query rows of some heads times keys) fill
about a megabyte, which stays in a core's cache; everything else that a block needs is of
that size or a few times it, whatever the number of queries and keys. Heads and batch
entries share one call of ``matmul`` where a single head is too small to fill a tile, and
the query heads that share a key head lie side by side as rows, so that K and V are never
repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import _ball, _rotary, _storage
from ruvector._kernels.fallback._stored import StoredRows, part_of_scales
from ruvector._kernels.fallback._visible import VisibleKeys, is_positional, reach
from ruvector._kernels.spec import AttentionSpec

__all__ = ["Block", "Tile", "blocks", "part_of"]

_Array = NDArray[Any]

# Scores in one tile, and the rows of a block that keep BLAS busy.
_SCORES = 1 << 18
_ROWS = 256
# Elements up to which keys are widened once for a head, not once per block of queries.
_WIDENED = 1 << 20


class _Cut(NamedTuple):
    """How many batch entries, key heads, query rows and keys one tile spans."""

    batch: int
    heads: int
    rows: int
    keys: int


def _cut(
    query: _Array,
    key: _Array,
    value: _Array | None,
    width: int,
    spec: AttentionSpec,
    ball: _ball.BallPart | None = None,
) -> _Cut:
    batch, num_heads, num_queries, dim = query.shape
    key_heads, num_keys = key.shape[1:3]
    group = num_heads // key_heads
    width = max(1, dim, width)
    copied = _storage.needs_copy(key) or (value is not None and _storage.needs_copy(value))
    copied = copied or spec.rotary is not None
    if ball is not None:
        width, copied = max(width, ball.query.shape[3]), True

    rows = _ROWS // group
    seen = num_keys
    if is_positional(spec):
        # Taller blocks would see more keys between them than each row needs.
        reached = reach(spec, num_keys)
        rows = min(rows, max(_ROWS // 4, reached))
        seen = min(num_keys, reached + rows)
    else:
        rows = max(rows, _SCORES // max(1, num_keys * group))
    rows = max(1, min(rows, num_queries, 2 * _SCORES // (width * group)))

    lines = rows * group
    one_head = lines * max(width, min(seen, _SCORES // lines))
    heads = max(1, min(key_heads, _SCORES // one_head))
    entries = 1
    if heads == key_heads:
        entries = max(1, min(batch, _SCORES // (one_head * heads)))

    keys = _SCORES // (entries * heads * lines)
    if copied:
        keys = min(keys, 2 * _SCORES // (entries * heads * width))
    return _Cut(entries, heads, rows, max(1, min(num_keys, keys)))


def _unrepeat(array: _Array | None) -> _Array | None:
    """Reduce every axis along which a broadcast view repeats itself to length 1."""
    if array is None:
        return None
    return array[tuple(slice(0, 1 if stride == 0 else None) for stride in array.strides)]


def part_of(array: _Array, *index: slice) -> _Array:
    """Index an array, except along the axes of length 1, which broadcast."""
    return array[
        tuple(
            slice(None) if length == 1 else part
            for length, part in zip(array.shape, index, strict=True)
        )
    ]


def _hide(scores: _Array, visible: NDArray[np.bool_]) -> None:
    """Set the scores that are not visible to -inf, whatever they hold."""
    # The minimum with -inf, passing over NaN, hides anything; with +inf it leaves a score
    # as it is and makes a NaN +inf, which poisons its row all the same. Unlike a masked
    # assignment it has no branch for an irregular mask to mispredict.
    limit = visible.astype(scores.dtype)
    limit -= 0.5
    limit *= np.inf
    np.fmin(scores, limit, out=scores)


class Tile(NamedTuple):
    """Scores of a block against the keys ``start`` to ``stop``, hidden ones -inf.

    ``scores`` is contiguous, of shape ``(batch, key heads, group * rows, keys)``, and holds
    until the next tile is made.
    """

    start: int
    stop: int
    scores: _Array


class _Problem:
    """What all blocks of one call share."""

    __slots__ = (
        "ball", "bias", "buffer", "cut", "group", "mask", "num_keys", "query", "spec",
    )  # fmt: skip

    def __init__(
        self,
        query: _Array,
        key: _Array,
        value: _Array | None,
        width: int,
        spec: AttentionSpec,
        ball: _ball.BallPart | None,
    ) -> None:
        self.query, self.spec, self.ball = query, spec, ball
        self.num_keys = key.shape[2]
        self.group = query.shape[1] // key.shape[1]
        self.mask, self.bias = _unrepeat(spec.mask), _unrepeat(spec.bias)
        self.cut = cut = _cut(query, key, value, width, spec, ball)
        size = cut.batch * cut.heads * self.group * cut.rows * cut.keys
        self.buffer = np.empty(size, _storage.compute_dtype(query))

    def positions(self, rows: slice) -> NDArray[np.int64]:
        if self.spec.positions is not None:
            return self.spec.positions[rows]
        offset = self.num_keys - self.query.shape[2] if self.spec.bottom_right else 0
        return np.arange(rows.start + offset, rows.stop + offset, dtype=np.int64)


class Block:
    """Some query rows of some heads of some batch entries.

    Attributes
    ----------
    place : tuple of slice
        The block's batch entries, query heads and rows: where its results go.
    shape : tuple of int
        Lengths of those three slices.
    lines : tuple of int
        ``(batch, key heads, group * rows)``: the same rows as they lie in a tile.
    """

    __slots__ = (
        "_ball", "_bias", "_buffer", "_keys", "_mask", "_positions", "_query", "_ranges",
        "_slopes", "_softcap", "_step", "_values", "_visible", "lines", "place", "shape",
    )  # fmt: skip

    def __init__(
        self,
        problem: _Problem,
        keys: StoredRows | _rotary.TurnedRows,
        values: StoredRows | _ball.ValueRows | None,
        ball_keys: _ball.KeyPoints | None,
        place: tuple[slice, slice, slice],
    ) -> None:
        spec, group = problem.spec, problem.group
        query = problem.query[place]
        if spec.rotary is not None:
            places = spec.rotary.query_positions[place[0], place[2]]
            query = _rotary.turned(query, places, spec.rotary.table, spec.rotary.neighbours)
        batch, heads, rows, dim = query.shape
        self.place = place
        self.shape = (batch, heads, rows)
        self.lines = (batch, heads // group, group * rows)

        softcap = spec.softcap
        scale = spec.scale if softcap is None else spec.scale / softcap
        scaled = np.multiply(_storage.widen(query), scale, order="C")
        self._query = scaled.reshape(*self.lines, dim)
        self._keys, self._values = keys, values
        self._ball = None
        if ball_keys is not None:
            assert problem.ball is not None
            self._ball = _ball.Distances(
                problem.ball, place, self.lines, ball_keys, 1 if softcap is None else softcap
            )
        self._buffer, self._step = problem.buffer, problem.cut.keys
        self._softcap = softcap
        self._slopes = None if spec.slopes is None else spec.slopes[place[1], None, None]
        everywhere = (*place, slice(None))
        self._mask = None if problem.mask is None else part_of(problem.mask, *everywhere)
        self._bias = None if problem.bias is None else part_of(problem.bias, *everywhere)
        self._positions = problem.positions(place[2])
        self._visible: VisibleKeys | None = None
        self._ranges = [(0, problem.num_keys)]
        if is_positional(spec):
            self._visible = VisibleKeys(self._positions, spec, problem.num_keys)
            self._ranges = self._visible.ranges()

    @property
    def query(self) -> _Array:
        """The block's queries times the scale, over the softcap where there is one."""
        return self._query

    @property
    def ball(self) -> _ball.Distances:
        """The block's part in the ball, where the problem has one."""
        assert self._ball is not None
        return self._ball

    @property
    def tile_size(self) -> int:
        """Numbers that a tile holds at most."""
        return int(prod(self.lines) * self._step)

    def keys(self, tile: Tile) -> _Array:
        """Give the key rows of a tile in the compute type."""
        return self._keys.tile(tile.start, tile.stop)

    def values(self, tile: Tile) -> _Array:
        """Give the value rows of a tile in the compute type."""
        assert self._values is not None
        rows: _Array = self._values.tile(tile.start, tile.stop)
        return rows

    def distances(self, start: int, stop: int) -> _Array:
        """Give the distance of every row's position from every key of a range."""
        distance: _Array = np.abs(self._positions[:, np.newaxis] - np.arange(start, stop))
        return distance.astype(self._query.dtype)

    def tiles(
        self, capped: _Array | None = None, ratios: NDArray[np.float64] | None = None
    ) -> Iterator[Tile]:
        """Score the keys that some row of the block may see, in ascending order.

        With a softcap, `capped` takes ``tanh(s / softcap)`` of the tile that is yielded: a
        flat array of `tile_size`. With a ball, `ratios` takes what
        :meth:`_ball.Distances.subtract_from` says.
        """
        for first, last in self._ranges:
            for start in range(first, last, self._step):
                stop = min(start + self._step, last)
                scores = self._scores(start, stop, capped, ratios)
                if scores is not None:
                    yield Tile(start, stop, scores)

    def _scores(
        self,
        start: int,
        stop: int,
        capped: _Array | None,
        ratios: NDArray[np.float64] | None,
    ) -> _Array | None:
        mask = self._columns(self._mask, start, stop)
        if mask is not None and not mask.any():
            return None
        shape = (*self.lines, stop - start)
        tile = self._buffer[: prod(shape)].reshape(shape)
        np.matmul(self._query, self._keys.tile(start, stop).swapaxes(-1, -2), out=tile)

        if self._ball is not None:
            self._ball.subtract_from(tile, start, stop, ratios)

        scores = tile.reshape(*self.shape, stop - start)
        if self._softcap is not None:
            np.tanh(scores, out=scores)
            if capped is not None:
                capped[: tile.size] = tile.ravel()
            scores *= self._softcap
        if self._slopes is not None:
            scores -= self._slopes * self.distances(start, stop)
        bias = self._columns(self._bias, start, stop)
        if bias is not None:
            scores += bias
            visible = bias != -np.inf
            if not visible.all():
                _hide(scores, visible)
        if mask is not None and not mask.all():
            _hide(scores, mask)
        if self._visible is not None:
            for a, b in self._visible.doubtful(start, stop):
                _hide(scores[..., a - start : b - start], self._visible.mask(a, b))
        return tile

    @staticmethod
    def _columns(array: _Array | None, start: int, stop: int) -> _Array | None:
        if array is None:
            return None
        return array if array.shape[3] == 1 else array[..., start:stop]

    def weigh(self, tile: Tile) -> _Array:
        """Sum the value rows with the weights that a tile now holds instead of its scores.

        A hidden value takes no part, even where it is NaN or infinite.
        """
        assert self._values is not None
        value = self._values.tile(tile.start, tile.stop)
        total: _Array = np.matmul(tile.scores, value)
        if np.isfinite(total).all():
            return total
        finite = np.isfinite(value)
        if finite.all():
            return total
        # A row may have met 0 * NaN: sum the finite values alone, then poison the rows that
        # see one of the others.
        total = np.matmul(tile.scores, np.where(finite, value, 0))
        bad = np.flatnonzero(~finite.all(axis=(0, 1, 3)))
        value = value[:, :, bad]
        seen = self._seen(tile.start, tile.stop)[..., bad].astype(total.dtype)
        for poison, here in (
            (np.inf, value == np.inf),
            (-np.inf, value == -np.inf),
            (np.nan, np.isnan(value)),
        ):
            total[np.matmul(seen, here.astype(total.dtype)) > 0] += poison
        return total

    def _seen(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Tell for every row of a tile and every key whether the row sees the key."""
        seen = np.ones((*self.shape, stop - start), np.bool_)
        mask = self._columns(self._mask, start, stop)
        if mask is not None:
            seen &= mask
        bias = self._columns(self._bias, start, stop)
        if bias is not None:
            seen &= bias != -np.inf
        if self._visible is not None:
            seen &= self._visible.mask(start, stop)
        return seen.reshape(*self.lines, stop - start)


def blocks(
    query: _Array,
    key: _Array,
    value: _Array | None,
    width: int,
    spec: AttentionSpec,
    ball: _ball.BallPart | None = None,
) -> Iterator[Block]:
    """Cut a problem into blocks of query rows.

    Parameters
    ----------
    query : ndarray, shape (B, H, Lq, D)
        Queries of any storage type.
    key : ndarray, shape (B, Hkv, Lk, D)
        Keys of the same type.
    value : ndarray, shape (B, Hkv, Lk, Dv), or None
        Values of the same type, where they are going to be summed.
    width : int
        Numbers that the caller keeps per query row.
    spec : AttentionSpec
        Score function and visible set of a problem that is not ragged.
    ball : BallPart, optional
        A second pair of queries and keys, whose distance joins the score, and the second
        part of the values. What a block sums is then ``[v, lambda x(v), lambda - 1]``.

    Yields
    ------
    Block
        In order of batch entry, head and row.
    """
    if 0 in query.shape[:3]:
        return
    problem = _Problem(query, key, value, width, spec, ball)
    cut, group = problem.cut, problem.group
    batch, num_heads, num_queries, _ = query.shape
    for b in range(0, batch, cut.batch):
        entries = slice(b, min(b + cut.batch, batch))
        for h in range(0, num_heads // group, cut.heads):
            own = slice(h, min(h + cut.heads, num_heads // group))
            keys = _keys(key[entries, own], spec, entries, own)
            values = None if value is None else _values(value, spec, ball, entries, own)
            ball_keys = None
            if ball is not None:
                points = ball.key[entries, own]
                ball_keys = _ball.KeyPoints(points, ball.spec, points.size <= _WIDENED)
            heads = slice(own.start * group, own.stop * group)
            for i in range(0, num_queries, cut.rows):
                rows = slice(i, min(i + cut.rows, num_queries))
                yield Block(problem, keys, values, ball_keys, (entries, heads, rows))


def _keys(
    own: _Array, spec: AttentionSpec, entries: slice, heads: slice
) -> StoredRows | _rotary.TurnedRows:
    if spec.rotary is None:
        return StoredRows(
            own, part_of_scales(spec.key_scales, entries, heads), own.size <= _WIDENED
        )
    return _rotary.TurnedRows(own, entries, spec.rotary, own.size <= _WIDENED)


def _values(
    value: _Array,
    spec: AttentionSpec,
    ball: _ball.BallPart | None,
    entries: slice,
    heads: slice,
) -> StoredRows | _ball.ValueRows:
    own = value[entries, heads]
    if ball is None or ball.value is None:
        return StoredRows(
            own, part_of_scales(spec.value_scales, entries, heads), own.size <= _WIDENED
        )
    second = ball.value[entries, heads]
    return _ball.ValueRows(own, second, ball.spec, own.size + second.size <= _WIDENED)

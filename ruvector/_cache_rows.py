"""The rows of a cache: one contiguous run of them in arrays that have room to grow.

The rows held are ``[first, first + count)`` of each array, in the order in which they came:
attention reads them as they lie. Dropping old rows moves `first`, dropping new ones `count`;
where the room behind the rows is used up they move to the front, or to larger arrays if that
would not free a good part of the room, so that a row is moved a bounded number of times
however many follow it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kernels
from ._arrays import BFLOAT16, FLOAT16, FLOAT32, Array

__all__ = ["STORAGE", "RowStore", "Rows"]

STORAGE = {
    "float32": FLOAT32,
    "float16": FLOAT16,
    "bfloat16": BFLOAT16,
    "int8": np.dtype(np.int8),
}
"""What rows of each type are stored as."""

# Rows that there is room for at first, and the share of the room that a move must free.
_SMALLEST = 16
_FREED = 8
# Rows that are checked at a time without being kept.
_CHECKED = 256


class Rows(NamedTuple):
    """Keys ``(n, dim)``, values ``(n, dim_v)`` and, of int8, their scales ``(heads, n)``."""

    keys: Array
    values: Array
    key_scales: Array | None = None
    value_scales: Array | None = None


class RowStore:
    """Keys and values in one storage type.

    Parameters
    ----------
    dim, dim_v : int
        Widths over all heads.
    dtype : str
        A key of :data:`STORAGE`.
    heads : int
        Number of heads, each with a scale of its own.
    room : int
        Rows to have room for from the start.
    """

    __slots__ = ("_arrays", "_count", "_first", "_heads")

    def __init__(self, dim: int, dim_v: int, dtype: str, heads: int, room: int) -> None:
        self._heads = heads
        self._first = self._count = 0
        # Scales lie head by head; turned, every array has its rows along the first axis.
        self._arrays = [np.empty((room, width), STORAGE[dtype]) for width in (dim, dim_v)]
        if dtype == "int8":
            self._arrays += [np.empty((heads, room), FLOAT32).T for _ in range(2)]

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> Rows:
        """Views of the rows that are held."""
        return _as_rows(self._held())

    @property
    def mapped(self) -> bool:
        """Whether the rows lie in memory that may not be written to."""
        return not self._arrays[0].flags.writeable

    def adopt(self, rows: Rows) -> None:
        """Hold these arrays, which need not be writeable, instead of what is held."""
        self._arrays = [x if i < 2 else x.T for i, x in enumerate(rows) if x is not None]
        self._first, self._count = 0, len(rows.keys)

    def store(self, keys: Array, values: Array) -> str | None:
        """Write rows behind those held, without holding them yet.

        Returns the name of the argument that does not fit the storage type, if one does not.
        """
        # Rows of the cache itself would move under a caller who appends them again.
        keys, values = (
            x.copy() if any(np.may_share_memory(x, y) for y in self._arrays[:2]) else x
            for x in (keys, values)
        )
        self._reserve(len(keys))
        start = self._first + self._count
        place = [array[start : start + len(keys)] for array in self._arrays]
        return self._write(keys, values, place)

    def check(self, keys: Array, values: Array) -> str | None:
        """Tell what :meth:`store` would, without writing anywhere."""
        scratch = _empty(self._arrays, _CHECKED)
        for start in range(0, len(keys), _CHECKED):
            k, v = (x[start : start + _CHECKED] for x in (keys, values))
            name = self._write(k, v, [array[: len(k)] for array in scratch])
            if name is not None:
                return name
        return None

    def _write(self, keys: Array, values: Array, arrays: list[Array]) -> str | None:
        place = _as_rows(arrays)
        for name, rows, out, scales in (
            ("key", keys, place.keys, place.key_scales),
            ("value", values, place.values, place.value_scales),
        ):
            shape = (len(rows), self._heads, out.shape[1] // self._heads)
            if not _kernels.cache.store_rows(rows.reshape(shape), out.reshape(shape), scales):
                return name
        return None

    def hold(self, count: int) -> None:
        """Hold that many of the first rows: fewer than before, or some that `store` wrote."""
        self._count = count

    def drop(self, count: int, kept: int) -> None:
        """Let go of `count` rows behind the first `kept` ones."""
        if kept and count:
            self._own()
            for array in self._held():
                array[count : count + kept] = array[:kept]
        self._first += count
        self._count -= count

    def select(self, kept: Array) -> None:
        """Hold the rows with these ascending indices alone."""
        self._own()
        for array in self._held():
            array[: len(kept)] = array[kept]
        self._count = len(kept)

    def _held(self) -> list[Array]:
        part = slice(self._first, self._first + self._count)
        return [array[part] for array in self._arrays]

    def _own(self) -> None:
        if self.mapped:
            self._move(self._count)

    def _reserve(self, count: int) -> None:
        room, needed = len(self._arrays[0]), self._count + count
        if self.mapped:
            self._move(max(needed, _SMALLEST))
        elif self._first + needed > room:
            if needed + room // _FREED <= room:
                self._place(self._arrays)
            else:
                self._move(max(needed, room + room // 2, _SMALLEST))

    def _move(self, room: int) -> None:
        self._place(_empty(self._arrays, room))

    def _place(self, arrays: list[Array]) -> None:
        """Copy the rows that are held to the front of some arrays, and use these."""
        # Within one array no further at a time than they move, so that no copy is made.
        step = self._first if arrays is self._arrays else self._count
        for target, source in zip(arrays, self._held(), strict=True):
            for start in range(0, self._count, max(1, step)):
                stop = min(start + step, self._count)
                target[start:stop] = source[start:stop]
        self._arrays, self._first = arrays, 0


def _as_rows(arrays: list[Array]) -> Rows:
    return Rows(*arrays[:2], *(array.T for array in arrays[2:]))


def _empty(arrays: list[Array], room: int) -> list[Array]:
    """Return arrays like these with room for that many rows."""
    first = [np.empty((room, x.shape[1]), x.dtype) for x in arrays[:2]]
    return first + [np.empty((x.shape[1], room), x.dtype).T for x in arrays[2:]]

"""Queries that each have a memory of their own: checked, cut into pieces, attended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _config, _kernels, _mapped
from ._arrays import BFLOAT16, FLOAT32, Array, Output, finished, floating, vectors
from ._kernels.spec import AttentionSpec
from .attention import Attention, DotProductAttention, FlashAttention, MultiHeadAttention
from .attention.base import by_head
from .attention.dense import SoftmaxAttention
from .errors import DimensionMismatchError

__all__ = ["Batch", "checked_batch"]

# Classes whose every call is one of the softmax engine over the arrays as they are.
_PACKED = (DotProductAttention, MultiHeadAttention, FlashAttention)

# What a call costs beside its keys, in keys.
_CALL = 64


class Batch:
    """Some queries and the memory of each; calling it attends, with one kernel thread.

    It is what travels to a worker. Pickled, arrays that are maps of files go as a path and
    an offset.

    Parameters
    ----------
    attention : Attention
        What is computed.
    queries : list of ndarray, shape (dim,) or (m_i, dim)
        Storage arrays, as are `keys` and `values`.
    keys : list of ndarray, shape (n_i, dim)
    values : list of ndarray, shape (n_i, dim_v)
    plain : bool, default False
        Whether they are known to be what the kernel takes, as they are.
    """

    __slots__ = ("_plain", "attention", "keys", "queries", "values")

    def __init__(
        self,
        attention: Attention,
        queries: list[Array],
        keys: list[Array],
        values: list[Array],
        *,
        plain: bool = False,
    ) -> None:
        self._plain = plain
        self.attention = attention
        self.queries = queries
        self.keys = keys
        self.values = values

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, part: slice) -> Batch:
        lists = self.queries[part], self.keys[part], self.values[part]
        return Batch(self.attention, *lists, plain=self._plain)

    def __reduce__(self) -> tuple[Any, ...]:
        lists = [
            [_mapped.reference(x) for x in arrays]
            for arrays in (self.queries, self.keys, self.values)
        ]
        return _opened, (self.attention, *lists)

    def __call__(self) -> list[Any]:
        """Attend in a worker: with one kernel thread, for there may be many workers."""
        with _config.num_threads(1):
            return self.attend()

    def attend(self) -> list[Any]:
        """Return the output of every query."""
        if self.packs:
            return self._attend_packed()
        lists = [[_shown(x) for x in given] for given in (self.queries, self.keys, self.values)]
        return [
            self.attention.compute(q, k, v) if len(k) else self._attend_nothing(q, v)
            for q, k, v in zip(*lists, strict=True)
        ]

    @property
    def packs(self) -> bool:
        """Whether one call of a kernel computes everything."""
        if type(self.attention) not in _PACKED or not self.queries:
            return False
        if self._plain:
            return True
        arrays = chain(self.queries, self.keys, self.values)
        width, dtype = self.values[0].shape[1], self.queries[0].dtype
        return all(x.dtype == dtype for x in arrays) and all(
            v.shape[1] == width for v in self.values
        )

    def pieces(self, count: int) -> list[Batch]:
        """Cut it into at most so many pieces of about the same work."""
        count = min(count, len(self))
        if count <= 1:
            return [self]
        work = np.cumsum([
            q.size // q.shape[-1] * (len(k) + _CALL)
            for q, k in zip(self.queries, self.keys, strict=True)
        ])  # fmt: skip
        targets = work[-1] * np.arange(1, count) / count
        cuts = np.unique(np.searchsorted(work, targets)).tolist()
        bounds = [0, *(cut for cut in cuts if 0 < cut < len(self)), len(self)]
        return [self[slice(a, b)] for a, b in pairwise(bounds) if a < b]

    def _attend_packed(self) -> list[Any]:
        attention = self.attention
        assert isinstance(attention, SoftmaxAttention)
        dim, heads, width = attention.dim, attention._heads, self.values[0].shape[1]
        if width % heads:
            raise DimensionMismatchError(
                f"values must have a width that divides into {heads} heads, got {width}"
            )
        if self._plain:
            ends = np.arange(len(self.queries) + 1, dtype=np.int64)
            rows, keys, values = np.stack(self.queries), self.keys, self.values
        else:
            ends = np.cumsum([0, *(q.size // dim for q in self.queries)], dtype=np.int64)
            rows = np.concatenate([q.reshape(-1, dim) for q in self.queries])
            keys, values = (
                [_contiguous(x) for x in given] for given in (self.keys, self.values)
            )
        shape = (1, len(rows), width)
        destination = Output(None, shape, rows.dtype, rows.dtype)
        causal = isinstance(attention, FlashAttention) and attention.causal
        _kernels.ragged.attend(
            by_head(rows[np.newaxis], heads),
            keys,
            values,
            ends,
            by_head(destination.work, heads),
            AttentionSpec(scale=attention._scale, causal=causal, bottom_right=causal),
            _config.current_threads(),
        )
        out = destination.deliver()[0]
        if self._plain:
            return list(out)
        bounds = ends.tolist()
        return [
            out[a] if q.ndim == 1 else out[a:b]
            for q, a, b in zip(self.queries, bounds[:-1], bounds[1:], strict=True)
        ]

    def _attend_nothing(self, query: Array, values: Array) -> Any:
        """Return what a query gets that sees nothing: from a key that is hidden."""
        key = np.zeros((1, query.shape[-1]), query.dtype)
        value = np.zeros((1, values.shape[1]), query.dtype)
        if query.ndim == 1:
            return self.attention.compute(query, key, value, mask=[False])
        rows = [self._attend_nothing(row, values) for row in query]
        if rows:
            return np.stack(rows)
        return self.attention.compute(query, key, value, mask=[False])


def checked_batch(
    attention: Attention,
    queries: ArrayLike | Sequence[ArrayLike],
    keys: ArrayLike | Sequence[ArrayLike],
    values: ArrayLike | Sequence[ArrayLike],
) -> Batch:
    """Check queries and memories against each other and the attention."""
    if type(attention) in _PACKED:
        # The checks in Python cost about as much as attention to ten keys.
        q, k, v = (_listed(x) for x in (queries, keys, values))
        if _kernels.ragged.plain(q, k, v, attention.dim):
            return Batch(attention, q, k, v, plain=True)
    lists = [
        _read(queries, "queries", floating),
        _read(keys, "keys", vectors),
        _read(values, "values", vectors),
    ]
    count = len(lists[0])
    for arrays, name in zip(lists[1:], ("keys", "values"), strict=True):
        if len(arrays) != count:
            raise DimensionMismatchError(
                f"{name} must hold {count} memories, one per query, got {len(arrays)}"
            )
    dim = attention.dim
    _give_widths(lists[1], dim)
    _give_widths(lists[2], next((x.shape[-1] for x in lists[2] if x.shape != (0, 0)), dim))
    for i, (q, k, v) in enumerate(zip(*lists, strict=True)):
        q_shape, k_shape, v_shape = q.shape, k.shape, v.shape
        if len(q_shape) not in (1, 2) or q_shape[-1] != dim:
            raise DimensionMismatchError(
                f"queries[{i}] must have shape ({dim},) or (m, {dim}), got {q_shape}"
            )
        if len(k_shape) != 2 or k_shape[1] != dim:
            raise DimensionMismatchError(f"keys[{i}] must have shape (n, {dim}), got {k_shape}")
        if len(v_shape) != 2 or v_shape[0] != k_shape[0]:
            raise DimensionMismatchError(
                f"values[{i}] must have shape ({k_shape[0]}, dim_v), one vector per key, got "
                f"{v_shape}"
            )
    return Batch(attention, *lists)


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple | np.ndarray) else []


def _read(given: Any, name: str, check: Callable[[object, str], Array]) -> list[Array]:
    if isinstance(given, memoryview):
        given = np.asarray(given)
    try:
        len(given)
    except TypeError:
        raise TypeError(
            f"{name} must be an array or a sequence, got {type(given).__name__}"
        ) from None
    return [
        x
        if type(x) is np.ndarray and x.dtype == FLOAT32 and x.size
        else check(x, f"{name}[{i}]")
        for i, x in enumerate(given)
    ]


def _give_widths(arrays: list[Array], width: int) -> None:
    """Give empty sequences, which have no width, that of the others."""
    for i, x in enumerate(arrays):
        if x.shape == (0, 0):
            arrays[i] = x.reshape(0, width)


def _shown(x: Array) -> Array:
    """Return a storage array as a class takes it."""
    return x if x.dtype != BFLOAT16 else finished(x, x.shape, BFLOAT16)


def _contiguous(x: Array) -> Array:
    flags = x.flags
    return x if flags.c_contiguous and flags.aligned else np.require(x, None, ["C", "A"])


def _opened(attention: Attention, *lists: list[Any]) -> Batch:
    queries, keys, values = ([_mapped.opened(x) for x in given] for given in lists)
    return Batch(attention, queries, keys, values)

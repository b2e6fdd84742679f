"""A key-value cache that attention reads in place.

Rows are stored in float32, float16, bfloat16 or int8, and attended to as they lie: nothing is
widened in memory. Of int8 each row of each head has a scale ``max |x| / 127``, apart for keys
and values; what is read back differs from what was appended by at most half a scale, entry by
entry. A score is then off by at most ``scale * max|k| / 254 * sum|q|`` (the first scale being
that of the dot products), and an output by at most ``max|v| / 254`` and what the change of the
weights makes of it.

:meth:`KVCache.snapshot` writes a file whose layout is in :mod:`ruvector._cache_file`;
:meth:`KVCache.restore` maps it, so that a cache may be larger than memory.
"""

from __future__ import annotations

import os
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from . import _cache_attend, _cache_file, _config, _kernels
from ._arrays import FLOAT32, Array
from ._cache_inputs import chosen_rows, raise_unfit, rows_to_store
from ._cache_rows import STORAGE, Rows, RowStore
from ._checks import integer, one_of
from .errors import DimensionMismatchError, InvalidConfigError

__all__ = ["KVCache", "Storage"]

Storage = Literal["float32", "float16", "bfloat16", "int8"]


class KVCache:
    """Keys and values that are appended to and attended to, in a storage type of their own.

    The rows that are held lie side by side, in the order in which they came; that order is
    what `mask` and `causal` of :meth:`attend` count by. Appending is cheap however many rows
    there are: room grows by half when it is used up. Concurrent calls of :meth:`attend` are
    safe, a change during one is not.

    Parameters
    ----------
    dim : int
        Width of a key over all heads.
    dim_v : int, optional
        Width of a value over all heads; `dim` by default.
    capacity : int, optional
        Most rows that the cache holds, which it has room for from the start.
    dtype : {"float32", "float16", "bfloat16", "int8"}, default "float32"
        What rows are stored as.
    num_heads : int, default 1
        Number of heads, contiguous slices of keys and values.
    window : int, optional
        Most rows that the cache holds beside sink tokens: an append evicts the oldest others.
    num_sink_tokens : int, default 0
        That many first rows of the cache stay when older rows are evicted [1]_.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    See Also
    --------
    ruvector.merge_states : Combine what :meth:`attend` returns over parts of a memory.

    References
    ----------
    .. [1] G. Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023,
       arXiv:2309.17453.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.stream import KVCache
    >>> rng = np.random.default_rng(0)
    >>> cache = KVCache(384, dtype="int8", num_heads=6, window=1000, num_sink_tokens=4)
    >>> keys, values = rng.standard_normal((2, 2000, 384), dtype=np.float32)
    >>> cache.append(keys, values)
    >>> output, lse = cache.attend(keys[-1], return_lse=True)
    >>> len(cache), output.shape, lse.shape
    (1004, (384,), (6,))
    """

    # What pickles name.
    __module__ = "ruvector.stream"

    def __init__(
        self,
        dim: int,
        dim_v: int | None = None,
        capacity: int | None = None,
        dtype: Storage = "float32",
        num_heads: int = 1,
        window: int | None = None,
        num_sink_tokens: int = 0,
    ) -> None:
        self._heads = integer(num_heads, "num_heads", 1)
        self._dim = integer(dim, "dim", 1)
        self._dim_v = self._dim if dim_v is None else integer(dim_v, "dim_v", 1)
        self._capacity = None if capacity is None else integer(capacity, "capacity", 1)
        self._dtype = one_of(dtype, "dtype", tuple(STORAGE))
        self._window = None if window is None else integer(window, "window", 1)
        self._sinks = integer(num_sink_tokens, "num_sink_tokens", 0)
        for name, width in (("dim", self._dim), ("dim_v", self._dim_v)):
            if width % self._heads:
                raise InvalidConfigError(
                    f"num_heads must divide {name}, got num_heads={self._heads} and "
                    f"{name}={width}"
                )
        if self._window is not None and self._capacity is not None:
            least = self._window + self._sinks
            if self._capacity < least:
                raise InvalidConfigError(
                    f"capacity must be at least window + num_sink_tokens = {least}, "
                    f"got {self._capacity}"
                )
        self._path: str | None = None
        self._scale = (self._dim // self._heads) ** -0.5
        self._store = self._new_store()

    def _new_store(self) -> RowStore:
        room = self._capacity or 0
        return RowStore(self._dim, self._dim_v, self._dtype, self._heads, room)

    @property
    def dim(self) -> int:
        """Width of a key over all heads."""
        return self._dim

    @property
    def dim_v(self) -> int:
        """Width of a value over all heads."""
        return self._dim_v

    @property
    def capacity(self) -> int | None:
        """Most rows that the cache holds, None for as many as there is memory for."""
        return self._capacity

    @property
    def dtype(self) -> str:
        """What rows are stored as."""
        return self._dtype

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._heads

    @property
    def window(self) -> int | None:
        """Most rows that the cache holds beside sink tokens."""
        return self._window

    @property
    def num_sink_tokens(self) -> int:
        """How many first rows stay when older rows are evicted."""
        return self._sinks

    @property
    def keys(self) -> Array:
        """The keys as float32, shape (n, dim): what attention reads.

        Of dtype float32 a read-only view, which holds until the cache changes; else a copy.
        """
        rows = self._store.rows
        return self._widened(rows.keys, rows.key_scales)

    @property
    def values(self) -> Array:
        """The values as float32, shape (n, dim_v), as :attr:`keys`."""
        rows = self._store.rows
        return self._widened(rows.values, rows.value_scales)

    def _widened(self, stored: Array, scales: Array | None) -> Array:
        width = stored.shape[1] // self._heads
        by_head = stored.reshape(len(stored), self._heads, width)
        wide = _kernels.cache.load_rows(by_head, scales).reshape(stored.shape)
        wide.flags.writeable = False
        return wide

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held, scales included."""
        return sum(x.nbytes for x in self._store.rows if x is not None)

    @property
    def path(self) -> str | None:
        """File that the rows are read from, None where they lie in memory."""
        return self._path if self._store.mapped else None

    def __len__(self) -> int:
        """Return the number of rows that are held."""
        return len(self._store)

    def __repr__(self) -> str:
        """Return the configuration and the number of rows."""
        config = ", ".join(f"{name}={value!r}" for name, value in self._config().items())
        return f"<KVCache({config}) of {len(self)} rows>"

    def _config(self) -> dict[str, Any]:
        return {
            "dim": self._dim,
            "dim_v": self._dim_v,
            "capacity": self._capacity,
            "dtype": self._dtype,
            "num_heads": self._heads,
            "window": self._window,
            "num_sink_tokens": self._sinks,
        }

    def append(self, key: ArrayLike, value: ArrayLike) -> None:
        """Add rows behind those that are held; with a window, then evict the oldest.

        Parameters
        ----------
        key : array_like, shape (dim,) or (n, dim)
            One key or several, perhaps none.
        value : array_like, shape (dim_v,) or (n, dim_v)
            As many values.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit each other or the cache.
        InvalidConfigError
            If there would be more rows than `capacity`, or a number does not fit `dtype`:
            int8 takes finite ones, float16 and bfloat16 up to their largest. The cache is
            then as it was.
        TypeError
            If an array does not hold real numbers.
        """
        keys = rows_to_store(key, "key", self._dim, self._dtype)
        values = rows_to_store(value, "value", self._dim_v, self._dtype)
        if len(values) != len(keys):
            raise DimensionMismatchError(
                f"value must hold {len(keys)} vectors, one per key, got {len(values)}"
            )
        total = len(self) + len(keys)
        if self._window is None and self._capacity is not None and total > self._capacity:
            raise InvalidConfigError(
                f"capacity must be at least {total} for {len(keys)} more rows, got "
                f"{self._capacity}: truncate or evict first"
            )
        if self._window is not None and len(keys) > self._window:
            # What the window passes over at once never takes up room.
            passed = slice(max(0, self._sinks - len(self)), len(keys) - self._window)
            if passed.start < passed.stop:
                raise_unfit(self._store.check(keys[passed], values[passed]), self._dtype)
                keys, values = (np.delete(x, passed, axis=0) for x in (keys, values))
                total = len(self) + len(keys)
        raise_unfit(self._store.store(keys, values), self._dtype)
        self._store.hold(total)
        if self._window is not None:
            self._evict_oldest(max(0, total - self._window - self._sinks))

    def truncate(self, length: int) -> None:
        """Hold the first `length` rows alone, as before the others were appended.

        Rows that a window evicted in the meantime do not come back.

        Parameters
        ----------
        length : int
            From 0 to ``len(cache)``.

        Raises
        ------
        InvalidConfigError
            If it is no such number.
        """
        length = integer(length, "length", 0)
        if length > len(self):
            raise InvalidConfigError(
                f"length must be at most {len(self)}, the rows that are held, got {length}"
            )
        self._store.hold(length)

    def evict(self, rows: int | ArrayLike = 1) -> None:
        """Let go of the oldest rows beside sink tokens, or of given rows.

        Parameters
        ----------
        rows : int or array_like of int or bool, default 1
            How many of the oldest; or the indices of rows, sink tokens too, perhaps those
            that got the least weight; or for each row whether it goes.

        Raises
        ------
        InvalidConfigError
            If there are not so many rows beside the sink tokens, or an index is outside of
            the rows that are held.
        DimensionMismatchError
            If an array has another shape.
        TypeError
            If it holds neither integers nor bool.
        """
        if isinstance(rows, int | np.integer):
            count = integer(rows, "rows", 0)
            most = max(0, len(self) - self._sinks)
            if count > most:
                raise InvalidConfigError(
                    f"rows must be at most {most}, those held beside sink tokens, got {count}"
                )
            self._evict_oldest(count)
            return
        self._store.select(np.flatnonzero(~chosen_rows(rows, len(self))))

    def _evict_oldest(self, count: int) -> None:
        if count:
            self._store.drop(count, min(self._sinks, len(self) - count))

    def clear(self) -> None:
        """Let go of all rows and of their memory."""
        self._store = self._new_store()

    def attend(
        self,
        query: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        causal: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        sink_logits: ArrayLike | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from queries to the rows that are held, reading them in place.

        Parameters
        ----------
        query : array_like, shape (dim,), (m, dim) or (B, m, dim)
            Read in float32 unless it has the dtype of the cache.
        mask : array_like, shape (n,), (m, n) or (B, m, n), optional
            Over the n rows held. Bool: True attends. Float: added to the scores, and -inf
            hides.
        causal : bool, default False
            Whether the m queries stand at the last m rows and see none behind their own.
        scale : float, optional
            Factor on the dot products; ``1 / sqrt(dim / num_heads)`` by default.
        softcap : float, optional
            Bound on the absolute value of the scaled dot products.
        sink_logits : array_like, shape (heads,), optional
            One more score per head in the denominator, without a value.
        enable_gqa : bool, default False
            Allow queries of a multiple of `dim`, g times as many heads: query head h then
            reads head ``h // g``, and the output is g times as wide.
        return_lse : bool, default False
            Whether to return the natural log-sum-exp of the scores.
        return_weights : bool, default False
            Whether to return the weights.
        out : ndarray, optional
            Array for the output, with its shape and the query's dtype.

        Returns
        -------
        output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            In the query's dtype. Where nothing is seen, as in an empty cache, it is 0 and
            the log-sum-exp -inf: the state that :func:`ruvector.merge_states` takes.
        lse : ndarray, shape (), (m,) or (B, m)
            With an axis of heads at the end where there are several. Only with
            `return_lse`.
        weights : ndarray, shape (n,), (m, n) or (B, m, n)
            With an axis of heads before the last of these (before the last two where there
            are several queries), where there are several heads. Only with
            `return_weights`.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit each other or the cache.
        InvalidConfigError
            If an option is outside its domain.
        InvalidMaskError
            If the mask has another shape, or is neither bool nor float.
        TypeError
            If an array does not hold real numbers.
        """
        rows = self._store.rows
        if (
            all(x is None for x in (mask, scale, softcap, sink_logits, out))
            and causal is enable_gqa is False
            and rows.keys.dtype == FLOAT32
        ):
            # Answers a float32 vector; for anything else the result is None.
            result = _kernels.softmax.attend_plain(
                query,
                rows.keys,
                rows.values,
                self._heads,
                self._scale,
                return_lse,
                return_weights,
                _config.current_threads(),
            )
            if result is not None:
                return result
        return _cache_attend.attend(
            rows,
            self._heads,
            query,
            mask,
            causal,
            enable_gqa,
            return_lse,
            return_weights,
            out,
            scale=scale,
            softcap=softcap,
            sink_logits=sink_logits,
        )

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and rows to a file, which appears when it is whole.

        Parameters
        ----------
        path : path-like
            Where to; a file that is there is replaced.

        Raises
        ------
        OSError
            If it cannot be written. What was there is then still there.
        """
        _cache_file.write(path, self._config(), self._store.rows)

    @classmethod
    def restore(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Self:
        """Return the cache that a file holds, its rows mapped and not read into memory.

        Attention reads the file page by page, so that a cache may be larger than memory. The
        file is never written to: what first changes rows, an append above all, copies them
        into memory, while :meth:`truncate` copies nothing.

        Parameters
        ----------
        path : path-like
            What :meth:`snapshot` wrote.
        verify : bool, default True
            Whether to read the rows once and compare their checksum. That of the header is
            compared in any case.

        Raises
        ------
        InvalidConfigError
            If it is another kind of file, of another version, cut short, or damaged.
        OSError
            If it cannot be read.
        """
        config, rows = _cache_file.read(path, verify)
        cache = cls(**{**config, "capacity": None})
        cache._capacity = config["capacity"]
        cache._store.adopt(rows)
        cache._path = os.path.abspath(path)
        return cache

    def __getstate__(self) -> dict[str, Any]:
        """Return configuration and rows, the rows of a file too."""
        rows = tuple(None if x is None else x.copy() for x in self._store.rows)
        return {"config": self._config(), "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over configuration and rows."""
        self.__init__(**state["config"])  # type: ignore[misc]
        self._store.adopt(Rows(*state["rows"]))

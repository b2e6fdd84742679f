"""Memories that grow: a key-value cache that attention reads in place, a stream of vectors."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from ._arrays import floating
from ._cache import KVCache
from ._checks import integer
from .errors import DimensionMismatchError, EmptyInputError

__all__ = ["KVCache", "StreamProcessor"]


class StreamProcessor:
    """The latest word of a stream of vectors, up to a number of them, and attention to it.

    Each vector is key and value at once. A full buffer takes no more until it is cleared, as
    upstream: for one that lets go of its oldest vectors take a :class:`KVCache` with a
    window.

    Parameters
    ----------
    dim : int
        Width of a vector.
    max_buffer_size : int
        Most vectors in the buffer.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    Examples
    --------
    >>> from ruvector.stream import StreamProcessor
    >>> stream = StreamProcessor(2, max_buffer_size=3)
    >>> [stream.push([i, 1.0]) for i in range(4)]
    [True, True, True, False]
    >>> stream.process([1.0, 0.0]).round(3)
    array([1.436, 1.   ], dtype=float32)
    """

    def __init__(self, dim: int, max_buffer_size: int) -> None:
        size = integer(max_buffer_size, "max_buffer_size", 1)
        self._cache = KVCache(dim, capacity=size)
        self._size = size

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._cache.dim

    @property
    def max_buffer_size(self) -> int:
        """Most vectors in the buffer."""
        return self._size

    @property
    def size(self) -> int:
        """Number of vectors in the buffer."""
        return len(self._cache)

    @property
    def is_full(self) -> bool:
        """Whether the buffer takes no more."""
        return len(self._cache) == self._size

    def push(self, vector: ArrayLike) -> bool:
        """Add a vector, unless the buffer is full.

        Parameters
        ----------
        vector : array_like, shape (dim,)

        Returns
        -------
        bool
            Whether the buffer took it.

        Raises
        ------
        DimensionMismatchError
            If it has another shape.
        TypeError
            If it does not hold real numbers.
        """
        row = floating(vector, "vector")
        if row.shape != (self.dim,):
            raise DimensionMismatchError(
                f"vector must have shape ({self.dim},), got {row.shape}"
            )
        if self.is_full:
            return False
        self._cache.append(row, row)
        return True

    def process(self, query: ArrayLike) -> Any:
        """Attend from queries to the buffer, which stays as it is.

        Parameters
        ----------
        query : array_like, shape (dim,) or (m, dim)

        Returns
        -------
        ndarray, shape (dim,) or (m, dim)
            In the query's dtype.

        Raises
        ------
        EmptyInputError
            If the buffer is empty.
        DimensionMismatchError
            If the query has another width.
        TypeError
            If it does not hold real numbers.
        """
        if not len(self._cache):
            raise EmptyInputError("buffer must hold at least one vector: push first")
        return self._cache.attend(query)

    def clear(self) -> None:
        """Empty the buffer."""
        self._cache.clear()

    def __repr__(self) -> str:
        """Return the configuration and the number of vectors."""
        return (
            f"<StreamProcessor(dim={self.dim}, max_buffer_size={self._size}) of "
            f"{self.size} vectors>"
        )

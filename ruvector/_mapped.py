"""Maps of files that travel between processes as a path and an offset.

A pickled ``np.memmap`` is a pickle of its numbers. What is sent here instead is where they
lie, and whoever receives it maps the file again.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array

__all__ = ["FileArray", "opened", "reference"]

# How many files a worker keeps mapped between tasks.
_FILES = 64


class FileArray(NamedTuple):
    """Where an array lies in a file.

    Attributes
    ----------
    path : str
        The file.
    dtype : dtype
        Of the array, as are `shape` and `strides`.
    shape, strides : tuple of int
    offset : int
        Byte of the file at which the first entry begins.
    writeable : bool
        Whether what is written into it goes to the file.
    """

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    writeable: bool


def reference(x: Any) -> Any:
    """Return where a map of a file lies; anything else as it is.

    A view of a map counts as one, whatever its own type is.
    """
    if not isinstance(x, np.ndarray):
        return x
    source: Any = x
    while source is not None and not isinstance(source, np.memmap):
        source = source.base if isinstance(source, np.ndarray) else None
    # A copy made from a map is of its class, but without a file; so is one in private pages.
    pages = getattr(source, "_mmap", None)
    if source is None or pages is None or source.filename is None or source.mode == "c":
        return x
    whole = np.frombuffer(pages, np.uint8)
    first = x.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    begin = source.offset - source.offset % _granularity()
    return FileArray(
        os.fspath(source.filename),
        x.dtype,
        x.shape,
        x.strides,
        begin + first,
        bool(x.flags.writeable and source.mode != "r"),
    )


def opened(x: Any) -> Any:
    """Return the array that a reference means; anything else as it is."""
    if not isinstance(x, FileArray):
        return x
    if 0 in x.shape:
        return np.empty(x.shape, x.dtype)
    whole = _whole(x.path, x.writeable, _identity(x.path))
    return np.ndarray(x.shape, x.dtype, whole, x.offset, x.strides)


def _granularity() -> int:
    from mmap import ALLOCATIONGRANULARITY

    return ALLOCATIONGRANULARITY


def _identity(path: str) -> tuple[int, ...]:
    """Tell a file from another one that takes its name."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size


@lru_cache(maxsize=_FILES)
def _whole(path: str, writeable: bool, identity: tuple[int, ...]) -> Array:
    return np.memmap(path, np.uint8, "r+" if writeable else "r")

"""The file that a snapshot of a key-value cache lies in.

All numbers are little-endian. A header of 256 bytes, zeros behind its last field::

    0    8 bytes   magic: 93 R V K V 0D 0A 1A (hexadecimal where not a letter)
    8    uint32    version of the format: 1
    12   uint32    size of the header: 256
    16   16 bytes  dtype: float32, float16, bfloat16 or int8 in ASCII, zeros behind
    32   uint64    dim, width of a key over all heads
    40   uint64    dim_v, width of a value over all heads
    48   uint64    num_heads
    56   int64     capacity, -1 where there is none
    64   int64     window, -1 where there is none
    72   uint64    num_sink_tokens
    80   uint64    n, number of rows
    88   uint64    offset of the keys: n rows of dim elements
    96   uint64    offset of the values: n rows of dim_v elements
    104  uint64    offset of the scales of the keys, with int8: num_heads rows of n float32
    112  uint64    offset of the scales of the values, with int8: num_heads rows of n float32
    120  uint64    size of the file
    128  uint32    CRC-32 of everything behind the header
    132  uint32    CRC-32 of the header before this field

The four sections follow in this order, each at the next multiple of 64, zeros between them;
without int8 the sections of scales are empty. A row holds one head after another.

A file is written beside its destination and then moved there, so that what is found under
the name is whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._cache_rows import STORAGE, Rows
from ._files import atomic_file
from .errors import InvalidConfigError

__all__ = ["read", "write"]

_MAGIC = b"\x93RVKV\r\n\x1a"
_VERSION = 1
_SIZE = 256
_FIELDS = struct.Struct("<8sII16sQQQqqQQQQQQQI")
_CHECKSUM = struct.Struct("<I")
_ALIGNMENT = 64
_BLOCK = 1 << 24


class _Section(NamedTuple):
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        return self.offset + self.shape[0] * self.shape[1] * self.dtype.itemsize


def _layout(config: dict[str, Any], rows: int) -> list[_Section]:
    """Place the four sections of a file."""
    item = STORAGE[config["dtype"]]
    heads = config["num_heads"] if config["dtype"] == "int8" else 0
    sections: list[_Section] = []
    offset = _SIZE
    places: tuple[tuple[tuple[int, int], np.dtype[Any]], ...] = (
        ((rows, config["dim"]), item),
        ((rows, config["dim_v"]), item),
        ((heads, rows), np.dtype(np.float32)),
        ((heads, rows), np.dtype(np.float32)),
    )
    for shape, dtype in places:
        sections.append(_Section(offset, shape, dtype.newbyteorder("<")))
        offset = -(-sections[-1].stop // _ALIGNMENT) * _ALIGNMENT
    return sections


def write(path: str | os.PathLike[str], config: dict[str, Any], rows: Rows) -> None:
    """Write a file, replacing one that is there only once the new one is whole.

    Parameters
    ----------
    path : path-like
        Where to.
    config : dict
        The arguments of the cache.
    rows : Rows
        What it holds.
    """
    count = len(rows.keys)
    sections = _layout(config, count)
    with atomic_file(path, durable=True) as file:
        file.seek(_SIZE)
        checksum, at = 0, _SIZE
        for section, array in zip(sections, rows, strict=True):
            padding = bytes(section.offset - at)
            file.write(padding)
            checksum, at = zlib.crc32(padding, checksum), section.stop
            if array is None:
                continue
            step = max(1, _BLOCK // max(1, section.shape[1] * section.dtype.itemsize))
            for start in range(0, len(array), step):
                part = np.ascontiguousarray(array[start : start + step], section.dtype)
                file.write(part.data)
                checksum = zlib.crc32(part.data, checksum)
        file.seek(0)
        file.write(_header(config, count, sections, checksum))


def _header(
    config: dict[str, Any], rows: int, sections: list[_Section], checksum: int
) -> bytes:
    capacity, window = config["capacity"], config["window"]
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        _SIZE,
        config["dtype"].encode(),
        config["dim"],
        config["dim_v"],
        config["num_heads"],
        -1 if capacity is None else capacity,
        -1 if window is None else window,
        config["num_sink_tokens"],
        rows,
        *(section.offset for section in sections),
        sections[-1].stop,
        checksum,
    )
    return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(_SIZE, b"\0")


def read(path: str | os.PathLike[str], verify: bool) -> tuple[dict[str, Any], Rows]:
    """Map a file for reading, once it is found to be whole.

    Parameters
    ----------
    path : path-like
        Where the file is.
    verify : bool
        Whether to read all of it and compare its checksum; the header's always is.

    Returns
    -------
    config : dict
        The arguments of the cache.
    rows : Rows
        What it held, as arrays over the file.

    Raises
    ------
    InvalidConfigError
        If it is another kind of file, of another version, cut short, or damaged.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        header = file.read(_SIZE)
        size = os.fstat(file.fileno()).st_size
    if header[: len(_MAGIC)] != _MAGIC:
        raise InvalidConfigError(f"path must name a snapshot of a KVCache, got {name!r}")
    if len(header) < _SIZE:
        raise InvalidConfigError(
            f"path must name a whole snapshot, got {name!r} cut off in its header"
        )
    _, version, header_size, dtype, *numbers, size_written, checksum = _FIELDS.unpack_from(
        header
    )
    if (version, header_size) != (_VERSION, _SIZE):
        raise InvalidConfigError(
            f"path must name a snapshot of version {_VERSION}, got {name!r} of version "
            f"{version}"
        )
    end = _FIELDS.size + _CHECKSUM.size
    written = _CHECKSUM.unpack_from(header, _FIELDS.size)[0]
    if zlib.crc32(header[: _FIELDS.size]) != written or header[end:].strip(b"\0"):
        raise InvalidConfigError(
            f"path must name a sound snapshot, got {name!r} with a damaged header"
        )
    dim, dim_v, heads, capacity, window, sinks, rows, *offsets = numbers
    config = {
        "dim": dim,
        "dim_v": dim_v,
        "capacity": None if capacity < 0 else capacity,
        "dtype": dtype.rstrip(b"\0").decode("ascii", "replace"),
        "num_heads": heads,
        "window": None if window < 0 else window,
        "num_sink_tokens": sinks,
    }
    if config["dtype"] not in STORAGE:
        raise InvalidConfigError(
            f"path must name a snapshot of a known dtype, got {name!r} with {config['dtype']!r}"
        )
    sections = _layout(config, rows)
    if offsets != [section.offset for section in sections] or size_written != sections[-1].stop:
        raise InvalidConfigError(
            f"path must name a sound snapshot, got {name!r} with a damaged header"
        )
    if size != size_written:
        raise InvalidConfigError(
            f"path must name a whole snapshot of {size_written} bytes, got {name!r} of {size}"
        )
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    if verify and _checksum(whole) != checksum:
        raise InvalidConfigError(
            f"path must name a sound snapshot, got {name!r} with damaged rows"
        )
    arrays = [
        whole[section.offset : section.stop].view(section.dtype).reshape(section.shape)
        for section in sections
    ]
    native = [x.astype(x.dtype.newbyteorder("="), copy=False) for x in arrays]
    return config, Rows(*native[: 4 if config["dtype"] == "int8" else 2])


def _checksum(whole: Array) -> int:
    checksum = 0
    for start in range(_SIZE, len(whole), _BLOCK):
        checksum = zlib.crc32(whole[start : start + _BLOCK].data, checksum)
    return checksum

"""Storage types and memory layouts, made ready for arithmetic and for BLAS.

float16 and bfloat16 (as its bits in uint16) are widened to float32 and narrowed again
with round to nearest even; float32 and float64 are computed as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["compute_dtype", "needs_copy", "ready", "store", "widen"]

_Array = NDArray[Any]

_FLOAT16 = np.dtype(np.float16)
_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
_BFLOAT16_BITS = np.dtype(np.uint16)

# Sign, exponent and fraction of a float16, shifted left by 13; where infinity and NaN land.
_FLOAT16_IN_FLOAT32 = np.int32(0x8FFFE000 - (1 << 32))
_FLOAT16_END = np.float32(2.0**16)


def compute_dtype(array: _Array) -> np.dtype[Any]:
    """Give the type that arrays of this storage type are computed in."""
    return _FLOAT64 if array.dtype == _FLOAT64 else _FLOAT32


def widen(array: _Array) -> _Array:
    """View or convert an array in its compute type."""
    if array.dtype == _BFLOAT16_BITS:
        bits = array.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if array.dtype == _FLOAT16:
        return _widen_float16(array)
    return array.astype(compute_dtype(array), copy=False)


def _widen_float16(array: _Array) -> _Array:
    # Several times faster than astype: the bits moved to where float32 has them, then the
    # exponent's bias made up for, which is exact and takes care of subnormal numbers.
    bits = array.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _FLOAT16_IN_FLOAT32
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)
    if wide.max(initial=0) >= _FLOAT16_END or wide.min(initial=0) <= -_FLOAT16_END:
        np.copyto(wide, array, where=np.abs(wide) >= _FLOAT16_END)
    return wide


def store(target: _Array, values: _Array) -> None:
    """Write computed values into an array of a storage type."""
    if target.dtype != _BFLOAT16_BITS:
        target[...] = values
        return
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    rounded >>= 16
    # Rounding could carry a NaN's payload into the exponent: keep its top bits, made quiet.
    np.copyto(rounded, (bits >> 16) | np.uint32(0x40), where=np.isnan(values))
    target[...] = rounded


def needs_copy(array: _Array) -> bool:
    """Tell whether rows must be converted, or copied because BLAS cannot walk them.

    NumPy multiplies matrices whose row stride is zero, negative or shorter than a row
    without BLAS, many times slower than a copy costs.
    """
    itemsize = array.itemsize
    row, unit = array.strides[-2:]
    return (
        array.dtype != compute_dtype(array)
        or unit != itemsize
        or row < array.shape[-1] * itemsize
        or row % itemsize != 0
    )


def ready(array: _Array) -> _Array:
    """Give rows in the compute type and in a layout that BLAS takes."""
    return np.ascontiguousarray(widen(array)) if needs_copy(array) else array

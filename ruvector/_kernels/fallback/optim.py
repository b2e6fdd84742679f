"""Steps of optimisers in place: the NumPy twin of ``_kernels.optim``.

Arrays come in lists, entry i of every list belonging to parameter i: one-dimensional,
contiguous, aligned, native-endian, float32 or float64, of one dtype and length for one
parameter. What is updated is writeable and shares memory with no other array of the call.
Lengths and lists may be empty.

Arithmetic is in the dtype of the parameter, its factors rounded from float64; norms are
summed in float64. NaN and inf follow IEEE arithmetic, each number on its own, and nothing
warns. Scratch: a few blocks of constant size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AdamSpec, SGDSpec

__all__ = ["adam", "bounds", "norm", "scale", "sgd"]

_Arrays = list[NDArray[Any]]

# Numbers whose temporaries stay in the second-level cache; few enough that no BLAS takes
# threads for their dot product.
_BLOCK = 1 << 13
# As in the compiled twin: where a sum of squares is taken again over scaled numbers.
_LOW, _HIGH = 1e-280, 1e280
_UP, _DOWN = 2.0**600, 2.0**-600


def sgd(
    params: _Arrays, gradients: _Arrays, buffers: _Arrays | None, spec: SGDSpec, threads: int
) -> None:
    """Take a step of gradient descent: update parameters and momentum buffers in place.

    ``buffers`` is None without momentum. At the first step what they hold is not used, but
    must be finite.
    """
    with np.errstate(all="ignore"):
        if buffers is None:
            for p, g in _blocks(params, gradients):
                p -= spec.rate * _decayed(g, p, spec.decay)
            return
        for p, g, b in _blocks(params, gradients, buffers):
            d = _decayed(g, p, spec.decay)
            b *= spec.keep
            b += spec.share * d
            p -= spec.rate * (d + spec.momentum * b if spec.nesterov else b)


def adam(
    params: _Arrays,
    gradients: _Arrays,
    first: _Arrays,
    second: _Arrays,
    peaks: _Arrays | None,
    spec: AdamSpec,
    threads: int,
) -> None:
    """Take a step of Adam: update parameters and moments in place.

    ``peaks`` are the largest second moments so far, None unless AMSGrad wants them.
    """
    lists = (params, gradients, first, second) + (() if peaks is None else (peaks,))
    rate, root = spec.corrected_rate, spec.root
    with np.errstate(all="ignore"):
        for p, g, m, v, *peak in _blocks(*lists):
            d = _decayed(g, p, spec.decay)
            m *= spec.beta1
            m += (1.0 - spec.beta1) * d
            v *= spec.beta2
            v += (1.0 - spec.beta2) * d * d
            w = np.maximum(peak[0], v, out=peak[0]) if peak else v
            scale = np.sqrt(w)
            scale *= root
            scale += spec.epsilon
            np.divide(m, scale, out=scale)
            scale *= rate
            if spec.shrinkage != 0:
                p *= 1.0 - spec.shrinkage
            p -= scale


def norm(arrays: _Arrays, threads: int) -> float:
    """Return the Euclidean norm of all the numbers together."""
    factor = 1.0
    with np.errstate(all="ignore"):
        total = _sum_of_squares(arrays, factor)
        if total < _LOW or total > _HIGH:
            factor = _UP if total < _LOW else _DOWN
            total = _sum_of_squares(arrays, factor)
    return math.sqrt(total) / factor


def scale(arrays: _Arrays, factor: float, threads: int) -> None:
    """Multiply all the numbers by a factor, in place."""
    with np.errstate(all="ignore"):
        for array in arrays:
            # In float64, because a small factor may be zero in float32.
            np.multiply(array, factor, out=array, dtype=np.float64, casting="same_kind")


def bounds(arrays: _Arrays) -> NDArray[np.int64]:
    """Return the addresses of every array's first byte and of the one behind its last.

    Unlike the arrays of the other functions these have any shape, strides and dtype. The
    result is ``(len(arrays), 2)``; both are the same of an array without elements.
    """
    found = np.empty((len(arrays), 2), np.int64)
    for row, x in zip(found, arrays, strict=True):
        start = x.__array_interface__["data"][0]
        reach = [step * (size - 1) for step, size in zip(x.strides, x.shape, strict=True)]
        low = start + sum(step for step in reach if step < 0)
        high = start + sum(step for step in reach if step > 0) + x.itemsize
        row[:] = (low, high) if x.size else start
    return found


def _blocks(*lists: _Arrays) -> Iterator[list[NDArray[Any]]]:
    for arrays in zip(*lists, strict=True):
        for i in range(0, len(arrays[0]), _BLOCK):
            yield [array[i : i + _BLOCK] for array in arrays]


def _decayed(g: NDArray[Any], p: NDArray[Any], decay: float) -> NDArray[Any]:
    return g + decay * p if decay != 0 else g


def _sum_of_squares(arrays: _Arrays, factor: float) -> float:
    total = 0.0
    for (x,) in _blocks(arrays):
        wide = x.astype(np.float64)
        wide *= factor
        total += float(wide @ wide)
    return total

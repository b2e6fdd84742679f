"""How points of any shape and dtype reach the kernels of :mod:`ruvector.hyperbolic`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import BFLOAT16, Array, floating, promote
from ._rows import RowOutput, at_least, check_width, row_pairs, rows
from .errors import DimensionMismatchError

__all__ = ["broadcast", "largest_norm", "map_pairs", "map_points", "points"]


def points(x: ArrayLike, name: str) -> Array:
    """Return user input as a storage array of vectors."""
    return at_least(1, floating(x, name), name, "(..., d)")


def largest_norm(curvature: float, *arrays: Array) -> float:
    """Return the norm of a result of these inputs that no rounding puts on the boundary."""
    dtype = promote(*arrays)
    spacing = 2.0**-7 if dtype == BFLOAT16 else float(np.finfo(dtype).eps)
    norm: float = (1 - 2 * spacing) * curvature**-0.5
    return norm


def broadcast(
    a: tuple[int, ...], b: tuple[int, ...], name_a: str, name_b: str
) -> tuple[int, ...]:
    """Return what leading axes broadcast to."""
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise DimensionMismatchError(
            f"{name_a} and {name_b} must have leading axes that broadcast, got {a} and {b}"
        ) from None


def map_points(
    kernel: Callable[..., None], x: Array, shape: tuple[int, ...], *parameters: float
) -> Array:
    """Apply a kernel of one operand to every vector; the result has the given shape."""
    output = RowOutput(None, shape, x)
    matrix = rows(x)
    per_row = shape[x.ndim - 1 :]
    kernel(matrix, output.work.reshape(len(matrix), *per_row), *parameters)
    return output.deliver()


def map_pairs(
    kernel: Callable[..., None],
    x: Array,
    y: Array,
    names: tuple[str, str],
    vectors: bool,
    *parameters: float,
) -> Array:
    """Apply a kernel to every pair of vectors; the result has vectors or numbers."""
    check_width(y, names[1], x, names[0])
    lead = broadcast(x.shape[:-1], y.shape[:-1], *names)
    per_row = x.shape[-1:] if vectors else ()
    output = RowOutput(None, (*lead, *per_row), x, y)
    for index, a, b in row_pairs(x, y, lead):
        part = output.work[index or ...]
        kernel(a, b, part.reshape(prod(lead[len(index) :]), *per_row), *parameters)
    return output.deliver()

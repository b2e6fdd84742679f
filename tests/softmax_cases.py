"""Problems for the softmax kernels, how to run them, and how near the result must be."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import reference

from ruvector import _kernels
from ruvector._kernels.spec import AttentionSpec

SIZES = (1, 7, 15, 16, 17, 31, 32, 33, 97)


class Tolerance(NamedTuple):
    """Bounds on the error: relative, absolute per unit of the largest value, and of L."""

    rtol: float
    atol: float
    lse: float


# The storage types lose up to half a unit in the last place when the result is stored, and
# products of bfloat16 may round their weights to bfloat16 as well.
TOLERANCES = {
    "float32": Tolerance(2e-5, 4e-6, 4e-6),
    "float64": Tolerance(1e-12, 1e-12, 1e-12),
    "float16": Tolerance(1e-3, 1e-5, 4e-6),
    "bfloat16": Tolerance(8e-3, 4e-3, 1e-4),
}
STORAGE = tuple(TOLERANCES)

LAYOUTS = (
    "(B, L, H, D)",
    "reversed",
    "padded rows",
    "every other row",
    "Fortran order but for the last axis",
)


def to_storage(array, dtype):
    """Round numbers to a storage type; bfloat16 becomes its bits."""
    if dtype != "bfloat16":
        return np.asarray(array).astype(dtype)
    bits = np.asarray(array, np.float32).view(np.uint32)
    return ((bits + 0x8000) >> 16).astype(np.uint16)


def to_float64(array):
    """Give the numbers that an array of a storage type holds."""
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def compute_dtype(dtype):
    """Give the type that a storage type is computed in."""
    return np.dtype("float64" if dtype in ("float64", np.float64) else "float32")


@dataclass
class Problem:
    """Arguments of a kernel."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    spec: AttentionSpec
    dtype: str

    def with_spec(self, **changes):
        """Change the score function or the visible set."""
        return replace(self, spec=replace(self.spec, **changes))

    def reference(self):
        """Compute (out, lse, weights) in float64."""
        options = {field.name: getattr(self.spec, field.name) for field in fields(self.spec)}
        return reference.attention(
            *(to_float64(a) for a in (self.query, self.key, self.value)), **options
        )

    def attend(self, threads=1):
        """Run the kernel in use, in the storage type."""
        shape = self.query.shape[:3]
        out = to_storage(np.full((*shape, self.value.shape[3]), np.nan), self.dtype)
        lse = np.full(shape, np.nan, compute_dtype(self.dtype))
        with quiet():
            _kernels.softmax.attend(
                self.query, self.key, self.value, out, lse, self.spec, threads
            )
        return out, lse

    def check(self, threads=1):
        """Compare the kernel in use with the reference."""
        out, lse = self.attend(threads)
        expected, expected_lse, _ = self.reference()
        self.compare_out(to_float64(out), expected)
        self.compare_lse(lse, expected_lse)

    def compare_out(self, out, expected):
        """Assert that outputs are as near as the storage type allows."""
        tolerance = TOLERANCES[self.dtype]
        values = np.abs(to_float64(self.value))
        largest = values.max(initial=0, where=np.isfinite(values))
        np.testing.assert_allclose(
            out, expected, rtol=tolerance.rtol, atol=tolerance.atol * max(1, largest)
        )

    def compare_lse(self, lse, expected):
        """Assert that L is as near as the compute type allows."""
        tolerance = TOLERANCES[self.dtype].lse
        np.testing.assert_allclose(lse, expected, rtol=tolerance, atol=tolerance)


@contextmanager
def quiet():
    """Fail on any warning, whatever the caller's floating-point error state is."""
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


def problem(
    seed=0,
    *,
    batch=1,
    heads=2,
    key_heads=None,
    num_queries=5,
    num_keys=9,
    dim=8,
    dim_v=None,
    dtype="float32",
    scale=None,
    **spec,
):
    """Make a problem of normally distributed numbers."""
    rng = np.random.default_rng(seed)
    key_heads = heads if key_heads is None else key_heads
    dim_v = dim if dim_v is None else dim_v
    arrays = (
        to_storage(rng.standard_normal((batch, h, length, width)), dtype)
        for h, length, width in (
            (heads, num_queries, dim),
            (key_heads, num_keys, dim),
            (key_heads, num_keys, dim_v),
        )
    )
    scale = dim**-0.5 if scale is None else scale
    return Problem(*arrays, AttentionSpec(scale=scale, **spec), dtype)


def relaid(array, layout):
    """Give the same numbers in another memory layout, the last axis contiguous."""
    if layout == "(B, L, H, D)":
        return array.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)
    if layout == "reversed":
        return array[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1]
    if layout == "padded rows":
        wide = np.zeros((*array.shape[:3], array.shape[3] + 5), array.dtype)
        wide[..., 2:-3] = array
        return wide[..., 2:-3]
    if layout == "every other row":
        return np.repeat(array, 2, axis=2)[:, :, ::2]
    if layout == "Fortran order but for the last axis":
        return array.transpose(2, 1, 0, 3).copy().transpose(2, 1, 0, 3)
    raise AssertionError(layout)

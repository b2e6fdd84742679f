"""Feature maps of linear attention, and its problems in the form that kernels take."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _config, _kernels
from ._arrays import Array, cast, compute_dtype, contiguous_rows, floating
from ._kernels.spec import FeatureSpec, LinearState
from ._options import read_mask
from ._problem import batches
from .errors import DimensionMismatchError

__all__ = [
    "KERNELS",
    "LinearProblem",
    "checked_projection",
    "draw_projection",
    "feature_spec",
    "key_bias",
    "new_state",
]

KERNELS = ("softmax", "relu", "elu")

# What is added to every feature, so that none vanishes.
_EPSILON = {"softmax": 1e-6, "relu": 1e-3, "elu": 0.0}

# Keys whose weights are computed at a time.
_WEIGHTS = 256


def draw_projection(
    dim: int, num_features: int, ortho: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw rows of normally distributed numbers, orthogonal within each block of `dim`.

    The direction of a row is uniform and its length that of a vector of `dim` standard normal
    numbers either way.
    """
    rows = rng.standard_normal((num_features, dim))
    if not ortho:
        return rows
    lengths = np.linalg.norm(rows, axis=1)
    for start in range(0, num_features, dim):
        block = rows[start : start + dim]
        q, r = np.linalg.qr(rng.standard_normal((dim, dim)))
        # With the signs of R's diagonal, Q is uniform over the orthogonal matrices.
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
        block[...] = q[: len(block)]
    rows *= lengths[:, np.newaxis]
    return rows


def checked_projection(projection: ArrayLike, num_features: int, dim: int) -> Array:
    """Return a projection that the caller gave."""
    array = floating(projection, "projection")
    if array.shape != (num_features, dim):
        raise DimensionMismatchError(
            f"projection must have shape ({num_features}, {dim}), got {array.shape}"
        )
    return array


def feature_spec(
    kernel: str, projection: Array | None, dim: int, dtype: np.dtype[Any]
) -> FeatureSpec:
    """Return the features of vectors of width `dim`, computed in `dtype`.

    The projection is None for ``"elu"``, which acts on the vector itself.
    """
    gain = 1.0
    if projection is None:
        projection = np.eye(dim)
    else:
        gain = 1 / len(projection)
    return FeatureSpec(
        kernel=kernel,
        projection=np.ascontiguousarray(cast(projection, dtype)),
        scale=dim**-0.25 if kernel == "softmax" else 1.0,
        epsilon=_EPSILON[kernel],
        gain=gain,
    )


def key_bias(mask: ArrayLike, name: str, dtype: np.dtype[Any]) -> Array:
    """Return a mask of keys as what is added to the logarithms of their weights."""
    read = read_mask(mask, name, dtype)
    if read.dtype == np.bool_:
        return np.where(read, 0, -np.inf).astype(dtype)
    return read


def new_state(batch: int, heads: int, features: FeatureSpec, dim_v: int) -> LinearState:
    """Return the state of no keys."""
    m = len(features.projection)
    return LinearState(
        np.zeros((batch, heads, m, dim_v)),
        np.zeros((batch, heads, m)),
        np.full((batch, heads), -np.inf if features.kernel == "softmax" else 0.0),
        np.zeros((batch, heads, dim_v)),
        np.zeros((batch, heads), np.int64),
    )


class LinearProblem:
    """Checked arrays over common batch axes, and the features between them.

    Parameters
    ----------
    query : ndarray, shape (..., H, Lq, D)
        A storage array with contiguous rows, as are `key` and `value`.
    key : ndarray, shape (..., H, Lk, D)
        Of the query's dtype and leading axes, as is `value`.
    value : ndarray, shape (..., H, Lk, Dv)
    bias : ndarray, shape (..., Lk), or None
        Of the compute dtype, the last axis contiguous; -inf hides a key.
    causal : bool
        Whether the queries are the last positions and see no key behind their own.
    features : FeatureSpec
        In the compute dtype.
    """

    __slots__ = ("bias", "causal", "features", "key", "query", "value")

    def __init__(
        self,
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None,
        causal: bool,
        features: FeatureSpec,
    ) -> None:
        self.query = query
        self.key = key
        self.value = value
        self.bias = bias
        self.causal = causal
        self.features = features

    def new_lse(self) -> Array:
        """Return an array for L, of shape ``(..., H, Lq)``."""
        return np.empty(self.query.shape[:-1], compute_dtype(self.query.dtype))

    def attend(self, out: Array, lse: Array | None = None) -> None:
        """Write the output and, where asked, L."""
        if 0 in self.query.shape[:-1]:
            return
        threads = _config.current_threads()
        arrays = (self.query, self.key, self.value, self.bias, out, lse)
        for chunk in batches(self.query.shape[:-3], arrays):
            views: list[Any] = chunk
            q, k, v, bias, o, row_lse = views
            _kernels.linear.attend(
                q, k, v, bias, o, row_lse, self.causal, self.features, threads
            )

    def weights(self) -> Array:
        """Return the weight of every key, of shape ``(..., H, Lq, Lk)``.

        They are what comes out for the unit vectors as values.
        """
        count, dtype = self.key.shape[-2], compute_dtype(self.query.dtype)
        query, key = contiguous_rows(self.query, dtype), contiguous_rows(self.key, dtype)
        weights = np.empty((*query.shape[:-1], count), dtype)
        for start in range(0, count, _WEIGHTS):
            part = weights[..., start : start + _WEIGHTS]
            value = np.eye(count, part.shape[-1], -start, dtype=dtype)
            value = np.broadcast_to(value, (*key.shape[:-1], part.shape[-1]))
            LinearProblem(query, key, value, self.bias, self.causal, self.features).attend(part)
        return weights

"""Linear attention as a function of arrays with any number of batch axes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, Output, cast, compute_dtype, contiguous_rows, floating
from ._checks import flag, integer, one_of
from ._features import (
    KERNELS,
    LinearProblem,
    checked_projection,
    draw_projection,
    feature_spec,
    key_bias,
)
from ._problem import common_axes
from .errors import DimensionMismatchError, InvalidMaskError

__all__ = ["LinearCall", "linear_attention"]


def linear_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    num_features: int,
    kernel: str = "softmax",
    seed: int = 42,
    ortho: bool = True,
    causal: bool = False,
    projection: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    return_lse: bool = False,
    out: Array | None = None,
) -> Any:
    r"""Attend by products of features, at a cost that is linear in the length.

    .. math::

        o_i = \frac{\sum_j \phi(q_i) \cdot \phi(k_j)\, v_j}{\sum_j \phi(q_i) \cdot \phi(k_j)}

    :class:`LinearAttention` describes the features and has a running state.

    Parameters
    ----------
    q : array_like, shape (..., H, Lq, D)
        Queries, with any number of batch axes; two axes alone mean one head. float32,
        float64, float16 or bfloat16; the last axis contiguous, the others with any
        strides, or else one copy is made.
    k : array_like, shape (..., H, Lk, D)
        Keys. Batch axes broadcast against those of `q`, and so does a single head.
    v : array_like, shape (..., H, Lk, Dv)
        Values.
    num_features : int
        Number M of features; not used by ``"elu"``.
    kernel : {"softmax", "relu", "elu"}, default "softmax"
        The features.
    seed : int, default 42
        Seed of the projection.
    ortho : bool, default True
        Whether the rows of the projection are orthogonal in blocks of D.
    causal : bool, default False
        Whether the queries are the last Lq of the Lk positions and see no key behind their
        own: query i sees keys up to ``Lk - Lq + i``.
    projection : array_like, shape (M, D), optional
        The projection, instead of one that is drawn.
    mask : array_like, shape (Lk,) or (..., Lk), optional
        One mask for all sequences, or one for each with the batch axes. Bool: True attends.
        Float: added to the logarithm of a key's weight, and -inf hides.
    return_lse : bool, default False
        Whether to return the logarithm of the sum of the weights too.
    out : ndarray, optional
        Array for the result, with its shape and the dtype of `q`; it may overlap an input.

    Returns
    -------
    output : ndarray, shape (..., H, Lq, Dv)
        In the dtype of `q` (float32 for integers). A query that sees nothing gets 0.
    lse : ndarray, shape (..., H, Lq)
        Natural logarithm, float32 (float64 for float64); -inf for a query that sees nothing.
        Only with `return_lse`.

    Raises
    ------
    DimensionMismatchError
        If shapes do not fit each other.
    InvalidMaskError
        If the mask is not one of keys, or is neither bool nor float.
    InvalidConfigError
        If an option is outside its domain.
    TypeError
        If an array does not hold real numbers.

    See Also
    --------
    LinearAttention : The same for one memory of vectors.
    linear_attention_backward : The gradients.
    scaled_dot_product_attention : What the exponential features approximate.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", 2020,
       arXiv:2009.14794.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> x = ruvector.normalize(rng.standard_normal((2, 4, 1000, 32), dtype=np.float32))
    >>> output = ruvector.linear_attention(x, x, x, num_features=256)
    >>> exact = ruvector.scaled_dot_product_attention(x, x, x)
    >>> output.shape, bool(np.abs(output - exact).max() < 0.01)
    ((2, 4, 1000, 32), True)
    """
    call = LinearCall(
        q,
        k,
        v,
        num_features=num_features,
        kernel=kernel,
        seed=seed,
        ortho=ortho,
        causal=causal,
        projection=projection,
        mask=mask,
    )
    problem = call.problem
    destination = Output(
        out,
        call.shape,
        call.arrays[0].dtype,
        problem.query.dtype,
        (
            problem.query,
            problem.key,
            problem.value,
            problem.bias,
            problem.features.projection,
        ),
    )
    lse = problem.new_lse() if return_lse else None
    problem.attend(call.inner(destination.work), lse)
    result = destination.deliver()
    if lse is None:
        return result
    return result, cast(lse, compute_dtype(call.arrays[0].dtype)).reshape(call.shape[:-1])


class LinearCall:
    """The checked arguments of :func:`linear_attention`.

    Attributes
    ----------
    arrays : tuple of ndarray
        The caller's q, k and v as storage arrays.
    projection : ndarray or None
        The caller's projection.
    problem : LinearProblem
        With three axes at least.
    shape : tuple of int
        Shape of the output.
    """

    __slots__ = ("arrays", "problem", "projection", "shape")

    def __init__(
        self,
        q: ArrayLike,
        k: ArrayLike,
        v: ArrayLike,
        *,
        num_features: int,
        kernel: str,
        seed: int,
        ortho: bool,
        causal: bool,
        projection: ArrayLike | None,
        mask: ArrayLike | None,
    ) -> None:
        self.arrays = floating(q, "q"), floating(k, "k"), floating(v, "v")
        kernel = one_of(kernel, "kernel", KERNELS)
        count = integer(num_features, "num_features", 1)
        checked_seed = integer(seed, "seed", 0)
        flag(ortho, "ortho")
        query, key, value = _common(self.arrays)
        dim = query.shape[-1]
        self.projection = drawn = None
        if projection is not None:
            self.projection = drawn = checked_projection(projection, count, dim)
        elif kernel != "elu":
            drawn = _drawn(dim, count, bool(ortho), checked_seed)
        real = compute_dtype(query.dtype)
        self.problem = LinearProblem(
            query,
            key,
            value,
            None if mask is None else _bias(mask, key, real),
            flag(causal, "causal"),
            feature_spec(kernel, None if kernel == "elu" else drawn, dim, real),
        )
        shape = (*query.shape[:-1], value.shape[-1])
        self.shape = shape[1:] if max(x.ndim for x in self.arrays) == 2 else shape

    def inner(self, x: Array) -> Array:
        """View an array of the output's leading axes, or of those of L, as the problem's."""
        return x if len(self.shape) > 2 else x[np.newaxis]


@lru_cache(maxsize=16)
def _drawn(dim: int, num_features: int, ortho: bool, seed: int) -> Array:
    return draw_projection(dim, num_features, ortho, np.random.default_rng(seed))


def _common(arrays: tuple[Array, Array, Array]) -> list[Array]:
    """Check the arrays and bring them to the same leading axes."""
    query, key, value = common_axes(arrays, ("q", "k", "v"), False)
    if query.shape[-1] == 0:
        raise DimensionMismatchError(
            f"q must have at least one feature on its last axis, got shape {arrays[0].shape}"
        )
    leading = query.shape[:-2]
    return [
        x if x.shape[:-2] == leading else np.broadcast_to(x, (*leading, *x.shape[-2:]))
        for x in (query, key, value)
    ]


def _bias(mask: ArrayLike, key: Array, dtype: np.dtype[Any]) -> Array:
    bias = key_bias(mask, "mask", dtype)
    shape = (*key.shape[:-3], key.shape[-2])
    fits = bias.shape[-1:] == shape[-1:] and bias.ndim in (1, len(shape))
    if not fits or any(x not in (1, y) for x, y in zip(bias.shape[:-1], shape, strict=False)):
        wanted = f"({shape[-1]},)" + (f" or {shape}" if len(shape) > 1 else "")
        raise InvalidMaskError(f"mask must have shape {wanted}, got shape {bias.shape}")
    return np.broadcast_to(contiguous_rows(bias, dtype), shape)

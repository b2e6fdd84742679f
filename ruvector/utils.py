"""Small vector functions that go with attention: norms, similarities, weights.

Each takes anything that NumPy can view and works over the last axis of any shape unless it
says otherwise. The result has the dtype of the input (float32 for lists, integers and
bool); sums are accumulated in float64, float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _config, _kernels
from ._arrays import Array, floating
from ._arrays import vectors as matrix_of
from ._checks import finite, integer, seeded
from ._rows import RowOutput, at_least, check_width, row_pairs, rows, zero_vector
from .errors import DimensionMismatchError
from .functional import scaled_dot_product_attention

__all__ = [
    "attention_weights",
    "available_mechanisms",
    "batch_normalize",
    "cosine_similarity",
    "l2_norm",
    "normalize",
    "pairwise_distances",
    "random_orthogonal_matrix",
    "scaled_dot_attention",
    "softmax",
]

_MECHANISMS = (
    "dot-product",
    "multi-head",
    "flash",
    "linear",
    "moe",
    "local-global",
    "hyperbolic",
    "dual-space",
    "edge-featured",
    "graph-rope",
)


def softmax(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Turn scores into weights that are positive and add up to one.

    Parameters
    ----------
    x : array_like, shape (..., n)
        Scores. -inf hides an entry.
    out : ndarray, shape (..., n), optional
        Where to write the result, of the result's dtype; may be `x` itself.

    Returns
    -------
    ndarray, shape (..., n)
        ``exp(x) / sum(exp(x))`` over the last axis. A row that is all -inf gives zeros; a
        row that holds NaN or +inf gives NaN.

    Raises
    ------
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.utils import softmax
    >>> softmax(np.log([1.0, 2.0, 5.0])).round(3)
    array([0.125, 0.25 , 0.625])
    >>> softmax([-np.inf, -np.inf])
    array([0., 0.], dtype=float32)
    """
    return _weights(x, "x", 1.0, out)


def attention_weights(
    scores: ArrayLike, temperature: float = 1.0, *, out: Array | None = None
) -> Array:
    """Turn scores into weights, sharper the lower the temperature.

    Parameters
    ----------
    scores : array_like, shape (..., n)
        -inf hides an entry.
    temperature : float, default 1.0
        Divides the scores; finite and positive.
    out : ndarray, shape (..., n), optional
        Where to write the result, of the result's dtype; may be `scores` itself.

    Returns
    -------
    ndarray, shape (..., n)
        ``softmax(scores / temperature)`` over the last axis, with the edge cases of
        :func:`softmax`.

    Raises
    ------
    InvalidConfigError
        If the temperature is not a positive finite number.
    DimensionMismatchError, TypeError
        If `scores` has no axis or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import attention_weights
    >>> attention_weights([1.0, 2.0], temperature=0.25).round(3)
    array([0.018, 0.982], dtype=float32)
    """
    return _weights(scores, "scores", finite(temperature, "temperature", positive=True), out)


def normalize(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Scale vectors to unit length.

    Parameters
    ----------
    x : array_like, shape (..., d)
        Vectors, none of them zero.
    out : ndarray, shape (..., d), optional
        Where to write the result, of the result's dtype; may be `x` itself.

    Returns
    -------
    ndarray, shape (..., d)
        Each vector divided by its Euclidean norm, without overflow or underflow on the way.

    Raises
    ------
    EmptyInputError
        If a vector is zero: it has no direction.
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import normalize
    >>> normalize([[3.0, 4.0], [0.0, 2.0]])
    array([[0.6, 0.8],
           [0. , 1. ]], dtype=float32)
    """
    array = at_least(1, floating(x, "x"), "x", "(..., d)")
    output = RowOutput(out, array.shape, array, in_place=True)
    matrix = rows(array)
    if not _kernels.utils.normalize(matrix, output.work.reshape(matrix.shape)):
        raise zero_vector(x=array)
    return output.deliver()


def l2_norm(x: ArrayLike, *, out: Array | None = None) -> Any:
    """Return the Euclidean length of vectors.

    Parameters
    ----------
    x : array_like, shape (..., d)
    out : ndarray, shape (...), optional
        Where to write the result, of the result's dtype.

    Returns
    -------
    ndarray, shape (...), or a scalar for one vector
        ``sqrt(sum(x * x))`` over the last axis, without overflow or underflow on the way.

    Raises
    ------
    DimensionMismatchError, TypeError
        If `x` has no axis or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import l2_norm
    >>> l2_norm([[3.0, 4.0], [5.0, 12.0]])
    array([ 5., 13.], dtype=float32)
    """
    array = at_least(1, floating(x, "x"), "x", "(..., d)")
    output = RowOutput(out, array.shape[:-1], array)
    _kernels.utils.l2_norm(rows(array), output.work.reshape(-1))
    return output.deliver()


def cosine_similarity(a: ArrayLike, b: ArrayLike, *, out: Array | None = None) -> Any:
    """Return the cosine of the angle between vectors.

    Parameters
    ----------
    a, b : array_like, shape (..., d)
        Vectors, none of them zero; the leading axes broadcast, so one vector goes with a
        whole matrix of others.
    out : ndarray, shape (...), optional
        Where to write the result, of the result's dtype.

    Returns
    -------
    ndarray, shape (...), or a scalar for two single vectors
        ``a.b / (|a| |b|)`` over the last axis, in [-1, 1] whatever the rounding.

    Raises
    ------
    EmptyInputError
        If a vector is zero: it has no direction.
    DimensionMismatchError, TypeError
        If shapes do not fit together, an input is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import cosine_similarity
    >>> cosine_similarity([1.0, 0.0], [[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    array([ 1.,  0., -1.], dtype=float32)
    """
    left = at_least(1, floating(a, "a"), "a", "(..., d)")
    right = at_least(1, floating(b, "b"), "b", "(..., d)")
    check_width(right, "b", left, "a")
    try:
        lead = np.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    except ValueError:
        raise DimensionMismatchError(
            f"a and b must have leading axes that broadcast, got shapes {left.shape} "
            f"and {right.shape}"
        ) from None
    output = RowOutput(out, lead, left, right)
    # A zero vector may turn up after other pairs are done, and `out` must not show them.
    cosines = np.empty_like(output.work)
    for index, x, y in row_pairs(left, right, lead):
        part = cosines[index or ...].reshape(-1)
        if not _kernels.utils.cosine_similarity(x, y, part):
            raise zero_vector(a=left, b=right)
    output.work[...] = cosines
    return output.deliver()


def batch_normalize(
    vectors: ArrayLike, epsilon: float = 1e-8, *, out: Array | None = None
) -> Array:
    """Shift and scale every feature to mean 0 and variance 1 over the batch.

    Parameters
    ----------
    vectors : array_like, shape (n, ...)
        A batch of n vectors, or of arrays.
    epsilon : float, default 1e-8
        Added to the variances; finite and positive.
    out : ndarray, shape (n, ...), optional
        Where to write the result, of the result's dtype; may be `vectors` itself.

    Returns
    -------
    ndarray, shape (n, ...)
        ``(x - mean) / sqrt(variance + epsilon)`` with the mean and the population variance
        over axis 0.

    Raises
    ------
    InvalidConfigError
        If `epsilon` is not a positive finite number.
    DimensionMismatchError, TypeError
        If `vectors` has fewer than two axes or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import batch_normalize
    >>> batch_normalize([[1.0, 10.0], [3.0, 30.0]]).round(3)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """
    epsilon = finite(epsilon, "epsilon", positive=True)
    array = at_least(2, matrix_of(vectors, "vectors"), "vectors", "(n, d) or (n, ...)")
    output = RowOutput(out, array.shape, array, in_place=True)
    shape = (len(array), prod(array.shape[1:]))
    matrix = rows(array).reshape(shape)
    _kernels.utils.batch_normalize(matrix, epsilon, output.work.reshape(shape))
    return output.deliver()


def pairwise_distances(vectors: ArrayLike, *, out: Array | None = None) -> Array:
    """Return the Euclidean distance between every two vectors.

    Close vectors are handled by their differences, so that distances do not drown in the
    rounding of large norms.

    Parameters
    ----------
    vectors : array_like, shape (n, d)
    out : ndarray, shape (n, n), optional
        Where to write the result, of the result's dtype.

    Returns
    -------
    ndarray, shape (n, n)
        Exactly symmetric, with zeros on the diagonal (NaN for a vector that holds NaN or
        inf).

    Raises
    ------
    DimensionMismatchError, TypeError
        If `vectors` does not have two axes or is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import pairwise_distances
    >>> pairwise_distances([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    array([[0., 5., 4.],
           [5., 0., 3.],
           [4., 3., 0.]], dtype=float32)
    """
    array = matrix_of(vectors, "vectors")
    if array.ndim != 2:
        raise DimensionMismatchError(f"vectors must have shape (n, d), got {array.shape}")
    output = RowOutput(out, (len(array), len(array)), array)
    threads = _config.current_threads()
    _kernels.utils.pairwise_distances(rows(array), output.work, threads)
    return output.deliver()


def random_orthogonal_matrix(
    dim: int, seed: int | np.random.Generator | None = None
) -> NDArray[np.float32]:
    """Draw a rotation or reflection, uniformly among all of them (Haar measure).

    Parameters
    ----------
    dim : int
        At least 1.
    seed : int or numpy.random.Generator, optional
        For a matrix that can be drawn again; fresh entropy by default.

    Returns
    -------
    ndarray of float32, shape (dim, dim)
        Rows and columns are orthonormal.

    Raises
    ------
    InvalidConfigError
        If `dim` is not an integer of at least 1, or `seed` neither an integer nor a generator.

    References
    ----------
    .. [1] F. Mezzadri, "How to Generate Random Matrices from the Classical Compact Groups",
       Notices of the AMS 54 (2007), arXiv:math-ph/0609050.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.utils import random_orthogonal_matrix
    >>> q = random_orthogonal_matrix(3, seed=0)
    >>> bool(np.allclose(q @ q.T, np.eye(3), atol=1e-6))
    True
    """
    dim = integer(dim, "dim", 1)
    q, r = np.linalg.qr(seeded(seed).normal(size=(dim, dim)))
    # QR alone fixes the signs of the diagonal of R, which is not uniform.
    return np.asarray(q * np.copysign(1, np.diagonal(r)), dtype=np.float32)


def scaled_dot_attention(
    query: ArrayLike,
    keys: ArrayLike,
    values: ArrayLike,
    scale: float | None = None,
    *,
    out: Array | None = None,
) -> Any:
    """Attend from one query, or several, to a memory of keys and values.

    The plain function behind :class:`ruvector.DotProductAttention`;
    :func:`ruvector.scaled_dot_product_attention` has heads, masks and windows.

    Parameters
    ----------
    query : array_like, shape (dim,), (m, dim) or (B, m, dim)
    keys : array_like, shape (n, dim), or (B, n, dim)
    values : array_like, shape (n, dim_v), or (B, n, dim_v)
    scale : float, optional
        Factor on the dot products; ``1 / sqrt(dim)`` by default.
    out : ndarray, optional
        Where to write the result, of the result's dtype.

    Returns
    -------
    ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
        ``softmax(scale * query @ keys.T) @ values``; zeros where there are no keys.

    Raises
    ------
    InvalidConfigError
        If `scale` is not a finite number.
    DimensionMismatchError, TypeError
        If shapes do not fit together, an input is not real, or `out` does not fit the result.

    Examples
    --------
    >>> from ruvector.utils import scaled_dot_attention
    >>> scaled_dot_attention([1.0, 0.0], [[1.0, 0.0], [1.0, 0.0]], [[1.0], [3.0]])
    array([2.], dtype=float32)
    """
    q = at_least(1, floating(query, "query"), "query", "(..., dim)")
    k = at_least(2, matrix_of(keys, "keys"), "keys", "(n, dim) or (B, n, dim)")
    v = at_least(2, matrix_of(values, "values"), "values", "(n, dim_v) or (B, n, dim_v)")
    check_width(k, "keys", q, "query")
    if v.shape[-2] != k.shape[-2]:
        raise DimensionMismatchError(
            f"values must hold {k.shape[-2]} vectors, one per key, got {v.shape[-2]}"
        )
    if q.ndim > 1:
        return scaled_dot_product_attention(q, k, v, scale=scale, out=out)
    row = out[np.newaxis] if isinstance(out, np.ndarray) else out
    result = scaled_dot_product_attention(q[np.newaxis], k, v, scale=scale, out=row)
    return result[0] if out is None else out


def available_mechanisms() -> list[str]:
    """Return the type names of the attention mechanisms.

    Returns
    -------
    list of str
        As :func:`ruvector.info` and the command line know them.

    Examples
    --------
    >>> from ruvector.utils import available_mechanisms
    >>> "flash" in available_mechanisms()
    True
    """
    return list(_MECHANISMS)


def _weights(x: ArrayLike, name: str, temperature: float, out: Array | None) -> Array:
    array = at_least(1, floating(x, name), name, "(..., n)")
    output = RowOutput(out, array.shape, array, in_place=True)
    matrix = rows(array)
    _kernels.utils.softmax(matrix, temperature, output.work.reshape(matrix.shape))
    return output.deliver()

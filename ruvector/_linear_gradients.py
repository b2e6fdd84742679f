"""The gradient of ``linear_attention``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import Array, cast, compute_dtype, contiguous_rows, finished, view
from ._backward import new_target
from ._gradients import checked
from ._linear import LinearCall
from ._linear_backward import LinearTargets, differentiate_linear

__all__ = ["LinearGradients", "linear_attention_backward"]


class LinearGradients(NamedTuple):
    """What :func:`linear_attention_backward` returns: a gradient per argument, in its shape."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    projection: Array | None


def linear_attention_backward(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    output: ArrayLike,
    grad_output: ArrayLike,
    *,
    num_features: int,
    kernel: str = "softmax",
    seed: int = 42,
    ortho: bool = True,
    causal: bool = False,
    projection: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    grad_lse: ArrayLike | None = None,
) -> LinearGradients:
    r"""Compute the gradients of linear attention, at a cost that is linear in the length.

    With `output` saved from the forward call, these are the gradients of

    .. math:: \sum \mathrm{output} \cdot \mathrm{grad\_output} +
              \sum \mathrm{lse} \cdot \mathrm{grad\_lse}

    in every argument that has one. The features are recomputed tile by tile; the log-sum-exp
    is not needed.

    Parameters
    ----------
    q, k, v : array_like
        As in :func:`linear_attention`, as are all keywords but `grad_lse`.
    output : array_like, shape (..., H, Lq, Dv)
        What :func:`linear_attention` returned for the same arguments.
    grad_output : array_like, shape (..., H, Lq, Dv)
        Gradient of the output.
    num_features, kernel, seed, ortho, causal, projection, mask
        As in :func:`linear_attention`.
    grad_lse : array_like, shape (..., H, Lq), optional
        Gradient of the log-sum-exp, where something depends on it.

    Returns
    -------
    LinearGradients
        A named tuple of `q`, `k`, `v`, `mask` and `projection`, each in shape and dtype of
        the argument; of arrays that were broadcast, summed. `mask` is None without a float
        mask, `projection` where it was not given or is not used (``"elu"``).

    Raises
    ------
    DimensionMismatchError
        If shapes do not fit each other.
    InvalidMaskError, InvalidConfigError, TypeError
        As :func:`linear_attention`.

    See Also
    --------
    ruvector.LinearAttention.compute_with_gradients : The same for one memory of vectors.
    attention_backward : The gradients of what the exponential features approximate.

    Notes
    -----
    The largest exponents, relative to which exponentials are computed, cancel but for the
    epsilon that is added to each; they are differentiated with the rest. A hidden key has a
    gradient of exactly 0, and a query that sees nothing leaves no trace.

    References
    ----------
    .. [1] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers
       with Linear Attention", 2020, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 8, 100, 16), dtype=np.float32)
    >>> options = {"num_features": 64, "causal": True}
    >>> output = ruvector.linear_attention(q, k, v, **options)
    >>> gradients = ruvector.linear_attention_backward(
    ...     q, k, v, output, np.ones_like(output), **options
    ... )
    >>> gradients.k.shape, gradients.mask is None
    ((1, 8, 100, 16), True)
    >>> bool(np.allclose(gradients.v.sum(axis=2), 100, atol=1e-3))  # weights sum to 1
    True
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
    storage = problem.query.dtype
    state = checked(output, "output", call.shape)
    gradient = checked(grad_output, "grad_output", call.shape)
    lse_gradient = None
    if grad_lse is not None:
        lse_gradient = cast(
            checked(grad_lse, "grad_lse", call.shape[:-1]), compute_dtype(storage)
        )
    arrays = (problem.query, problem.key, problem.value)
    query, key, value = (
        new_target(x, array.shape) for x, array in zip(arrays, call.arrays, strict=True)
    )
    given = None if mask is None else view(mask, "mask")[0]
    bias = None
    if given is not None and given.dtype != np.bool_:
        assert problem.bias is not None
        bias = new_target(problem.bias, given.shape)
    learned = None
    if call.projection is not None and problem.features.kernel != "elu":
        learned = np.zeros(call.projection.shape)
    differentiate_linear(
        problem,
        contiguous_rows(call.inner(state), storage),
        contiguous_rows(call.inner(gradient), storage),
        None if lse_gradient is None else call.inner(lse_gradient),
        LinearTargets(query, key, value, bias, learned),
    )
    origins = (*call.arrays, given, call.projection)
    made: list[Any] = [
        None if x is None or origin is None else finished(x, origin.shape, origin.dtype)
        for x, origin in zip((query, key, value, bias, learned), origins, strict=True)
    ]
    return LinearGradients(*made)

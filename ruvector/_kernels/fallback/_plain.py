"""One float32 query over one memory, without any option: the formula and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from ruvector._kernels.fallback._threads import blas_threads

__all__ = ["attend_plain"]

_FLOAT32 = np.dtype(np.float32)


def attend_plain(
    query: Any,
    keys: Any,
    values: Any,
    heads: int,
    scale: float,
    return_lse: bool,
    return_weights: bool,
    threads: int,
) -> Any:
    """Attend from one float32 query over float32 keys, without any option.

    Parameters
    ----------
    query : ndarray, shape (dim,)
        The query.
    keys : ndarray, shape (n, dim)
        The keys, at least one.
    values : ndarray, shape (n, dim_v)
        The values.
    heads : int
        How many heads the vectors hold as contiguous slices.
    scale : float
        What multiplies each dot product.
    return_lse, return_weights : bool
        Whether L and the weights are returned as well.
    threads : int
        How many threads BLAS may use.

    Returns
    -------
    ndarray, shape (dim_v,), or tuple, or None
        o, followed by L, shape ``(heads,)``, and the weights, shape ``(heads, n)``, where
        asked for, without the heads' axis where there is one head. None where the arguments
        are anything but contiguous float32 arrays of fitting shapes, or a head's largest score
        is infinite: the general path answers those.
    """
    if not (
        type(query) is type(keys) is type(values) is np.ndarray
        and query.ndim == 1
        and keys.ndim == 2
        and values.ndim == 2
        and query.dtype == keys.dtype == values.dtype == _FLOAT32
        and query.flags.c_contiguous
        and keys.flags.c_contiguous
        and values.flags.c_contiguous
        and query.flags.aligned
        and keys.flags.aligned
        and values.flags.aligned
    ):
        return None
    n, dim = keys.shape
    dim_v = values.shape[1]
    if not (
        n >= 1
        and query.shape[0] == dim
        and values.shape[0] == n
        and dim % heads == 0
        and dim_v % heads == 0
    ):
        return None
    with blas_threads(threads, n * (dim + dim_v)), np.errstate(all="ignore"):
        scaled = query * np.float32(scale)
        if heads == 1:
            weight = keys.dot(scaled)
            origin = np.maximum.reduce(weight)
            if abs(origin) == np.inf:
                return None
            weight -= origin
            np.exp(weight, out=weight)
            total = np.add.reduce(weight)
            out = weight.dot(values)
            out /= total
            whole = total
        else:
            by_head = keys.reshape(n, heads, dim // heads).transpose(1, 0, 2)
            weight = np.matmul(by_head, scaled.reshape(heads, -1, 1))[:, :, 0]
            origin = np.maximum.reduce(weight, axis=1)
            if np.isinf(origin).any():
                return None
            whole = origin[:, np.newaxis]
            weight -= whole
            np.exp(weight, out=weight)
            total = np.add.reduce(weight, axis=1)
            whole = total[:, np.newaxis]
            by_head = values.reshape(n, heads, dim_v // heads).transpose(1, 0, 2)
            out = np.matmul(weight[:, np.newaxis], by_head)[:, 0]
            out /= whole
            out = out.reshape(dim_v)
        if not (return_lse or return_weights):
            return out
        result = [out]
        if return_lse:
            result.append(origin + np.log(total))
        if return_weights:
            weight /= whole
            result.append(weight)
        return tuple(result)

"""Attention over a memory of its own for each query: the NumPy twin of the compiled face.

Cost and memory are those of one call of :func:`softmax.attend` a memory; the compiled twin
hands all of them to the engine at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback import softmax
from ruvector._kernels.fallback._plain import attend_plain
from ruvector._kernels.spec import AttentionSpec

__all__ = ["attend", "plain"]

_Array = NDArray[Any]
_FLOAT32 = np.dtype(np.float32)


def plain(queries: list[Any], keys: list[Any], values: list[Any], dim: int) -> bool:
    """Tell whether memories and their queries are what `attend` takes, as they are.

    Parameters
    ----------
    queries, keys, values : list
        One each for every memory; anything may be in them.
    dim : int
        Width of queries and keys.

    Returns
    -------
    bool
        Whether each query is ``(dim,)``, each keys ``(n_s, dim)`` and each values
        ``(n_s, dim_v)`` with one dim_v for all, and all of them contiguous, aligned float32
        ndarrays. False where there are none.
    """
    if not queries or not len(queries) == len(keys) == len(values):
        return False
    if not all(
        type(x) is np.ndarray
        and x.dtype == _FLOAT32
        and x.ndim == axes
        and x.flags.c_contiguous
        and x.flags.aligned
        for arrays, axes in ((queries, 1), (keys, 2), (values, 2))
        for x in arrays
    ):
        return False
    width = values[0].shape[1]
    return all(
        len(q) == k.shape[1] == dim and v.shape == (len(k), width)
        for q, k, v in zip(queries, keys, values, strict=True)
    )


def attend(
    query: _Array,
    keys: list[_Array],
    values: list[_Array],
    ends: NDArray[np.int64],
    out: _Array,
    spec: AttentionSpec,
    threads: int,
) -> None:
    """Attend from every query row to its own memory.

    Parameters
    ----------
    query : ndarray, shape (1, H, T, D)
        The rows of all memories one after another; strides as in :func:`softmax.attend`.
    keys : list of S ndarray, shape (n_s, H * D)
        C-contiguous, aligned, of the query's dtype; a memory may be empty.
    values : list of S ndarray, shape (n_s, H * Dv)
        As `keys`.
    ends : ndarray of int64, shape (S + 1,)
        Contiguous; rows ``ends[s]`` to ``ends[s + 1]`` of the query attend to memory s.
    out : ndarray, shape (1, H, T, Dv)
        Takes o, in the query's dtype. Overlaps no input.
    spec : AttentionSpec
        Scale and causality alone; ``bottom_right`` counts for each memory.
    threads : int
        How many threads BLAS may use.
    """
    heads, width = query.shape[1], out.shape[3]
    bounds = ends.tolist()
    for s, (key, value) in enumerate(zip(keys, values, strict=True)):
        start, stop = bounds[s], bounds[s + 1]
        if start == stop:
            continue
        # The last of the positions sees every key, so that causality does not matter.
        if stop - start == 1 and (spec.bottom_right or not spec.causal):
            row = np.ascontiguousarray(query[0, :, start]).reshape(-1)
            plain = attend_plain(row, key, value, heads, spec.scale, False, False, threads)
            if plain is not None:
                out[0, :, start] = plain.reshape(heads, width)
                continue
        rows = slice(start, stop)
        softmax.attend(
            query[:, :, rows],
            _by_head(key, heads),
            _by_head(value, heads),
            out[:, :, rows],
            None,
            spec,
            threads,
        )


def _by_head(x: _Array, heads: int) -> _Array:
    return x.reshape(1, len(x), heads, -1 if x.size else x.shape[1] // heads).swapaxes(1, 2)

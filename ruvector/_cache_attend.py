"""Attention from queries to the rows of a cache, read where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _config, _kernels
from ._arrays import (
    FLOAT32,
    Array,
    Output,
    cast,
    compute_dtype,
    contiguous_rows,
    floating,
)
from ._cache_rows import Rows
from ._checks import flag
from ._kernels.spec import AttentionSpec
from ._options import read_mask, score_options
from .errors import DimensionMismatchError, InvalidMaskError

__all__ = ["attend"]


def attend(
    rows: Rows,
    heads: int,
    query: object,
    mask: object,
    causal: bool,
    enable_gqa: bool,
    return_lse: bool,
    return_weights: bool,
    out: object,
    **options: Any,
) -> Any:
    """Compute what :meth:`ruvector.stream.KVCache.attend` returns.

    Parameters
    ----------
    rows : Rows
        Keys and values in a storage type.
    heads : int
        Number of heads of `rows`.
    query, mask, causal, enable_gqa, return_lse, return_weights, out
        The caller's.
    **options
        ``scale``, ``softcap`` and ``sink_logits``.
    """
    q = floating(query, "query")
    num_keys, dim = rows.keys.shape
    group = _group(q, dim, flag(enable_gqa, "enable_gqa"))
    leading, dtype = q.shape[:-1], q.dtype
    # What is stored as the query is is multiplied as it is; all else meets in float32.
    work = dtype if dtype == rows.keys.dtype else FLOAT32
    q = contiguous_rows(q, work)
    q = q.reshape((1,) * (3 - q.ndim) + q.shape)
    batch, m = q.shape[:2]
    real = compute_dtype(work)
    spec = score_options(
        features=dim // heads,
        heads=heads * group,
        dtype=real,
        is_causal=flag(causal, "causal"),
        causal_alignment="bottom_right",
        window=None,
        num_sink_tokens=0,
        alibi_slopes=None,
        **options,
    )
    checked = None
    if mask is not None:
        checked = _checked_mask(mask, leading, num_keys, real)
        field = "mask" if checked.dtype == np.bool_ else "bias"
        spec[field] = np.broadcast_to(checked, (batch, heads * group, m, num_keys))
    if rows.key_scales is not None and rows.value_scales is not None:
        spec["key_scales"] = _repeated(rows.key_scales, batch)
        spec["value_scales"] = _repeated(rows.value_scales, batch)
    queries = _by_head(q, heads * group)
    keys, values = (_by_head(_repeated(x, batch), heads) for x in (rows.keys, rows.values))
    width = rows.values.shape[1] * group
    destination = Output(out, (*leading, width), dtype, work, (q, checked))
    lse = np.empty(queries.shape[:3], real) if return_lse else None
    threads = _config.current_threads()
    plan = AttentionSpec(**spec)
    _kernels.softmax.attend(
        queries,
        keys,
        values,
        _by_head(destination.work.reshape(batch, m, width), heads * group),
        lse,
        plan,
        threads,
    )
    weights = None
    if return_weights:
        weights = np.empty((*queries.shape[:3], num_keys), real)
        _kernels.softmax.weights(queries, keys, weights, plan, threads)
    result = [destination.deliver()]
    real = compute_dtype(dtype)
    if lse is not None:
        lse = cast(lse.swapaxes(1, 2), real).reshape(*leading, heads * group)
        result.append(lse[..., 0][()] if heads * group == 1 else lse)
    if weights is not None:
        weights = cast(weights, real)
        if heads * group == 1:
            weights = weights[:, 0]
        if len(leading) == 0:
            weights = weights[0, ..., 0, :]
        elif len(leading) == 1:
            weights = weights[0]
        result.append(weights)
    return result[0] if len(result) == 1 else tuple(result)


def _repeated(x: Array, batch: int) -> Array:
    # A view of one entry takes a fifth of the time of one that is broadcast.
    return x[np.newaxis] if batch == 1 else np.broadcast_to(x, (batch, *x.shape))


def _by_head(x: Array, heads: int) -> Array:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _group(query: Array, dim: int, enable_gqa: bool) -> int:
    width = query.shape[-1] if query.ndim else 0
    multiple = enable_gqa and width > 0 and width % dim == 0
    if not 1 <= query.ndim <= 3 or not (width == dim or multiple):
        wanted = f"a multiple of {dim}" if enable_gqa else str(dim)
        raise DimensionMismatchError(
            f"query must have 1 to 3 axes, the last of length {wanted}, got {query.shape}"
        )
    return width // dim


def _checked_mask(
    mask: object, leading: tuple[int, ...], num_keys: int, dtype: np.dtype[Any]
) -> Array:
    """Return a mask as a view that broadcasts to ``(B, heads, m, n)``."""
    read = read_mask(mask, "mask", dtype)
    rows = leading[-1] if leading else 1
    shapes = [(num_keys,), (rows, num_keys)]
    if len(leading) == 2:
        shapes.append((leading[0], rows, num_keys))
    if read.shape not in shapes:
        raise InvalidMaskError(
            f"mask must have shape {' or '.join(map(str, shapes))}, got {read.shape}"
        )
    return read[:, np.newaxis] if read.ndim == 3 else read

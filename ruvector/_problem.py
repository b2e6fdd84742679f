"""One softmax-attention problem in the form that kernels take.

Kernels know one batch axis. Several are collapsed into one where the strides of every
array allow it without a copy; what is left over is a loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from . import _config, _kernels
from ._arrays import Array, compute_dtype, contiguous_rows, promote
from ._kernels.spec import AttentionSpec
from ._options import broadcast_mask, read_mask, score_options
from .errors import DimensionMismatchError

__all__ = ["Problem", "batches", "build_problem", "common_axes"]


class Problem:
    """Checked arrays over common batch axes, and the score function between them.

    Parameters
    ----------
    query : ndarray, shape (..., H, Lq, D)
        A storage array with contiguous rows, as are `key` and `value`.
    key : ndarray, shape (..., Hkv, Lk, D)
        Of the query's dtype and batch axes, as is `value`.
    value : ndarray, shape (..., Hkv, Lk, Dv), or None
        None where only scores matter.
    mask : ndarray, shape (..., H, Lq, Lk), or None
        A broadcast view: bool, or the compute dtype for a bias.
    options : dict
        The other fields of :class:`AttentionSpec`.
    """

    __slots__ = ("key", "mask", "options", "query", "value")

    def __init__(
        self,
        query: Array,
        key: Array,
        value: Array | None,
        mask: Array | None,
        options: dict[str, Any],
    ) -> None:
        self.query = query
        self.key = key
        self.value = value
        self.mask = mask
        self.options = options

    def inputs(self) -> list[Array | None]:
        """Return every array that a kernel reads, for a check against overlap."""
        arrays = [x for x in self.options.values() if isinstance(x, np.ndarray)]
        return [self.query, self.key, self.value, self.mask, *arrays]

    def new_lse(self) -> Array:
        """Return an array for L, of shape ``(..., H, Lq)``."""
        return np.empty(self.query.shape[:-1], compute_dtype(self.query.dtype))

    def attend(self, out: Array, lse: Array | None = None) -> None:
        """Write the attended values and, where asked, L."""
        threads = _config.current_threads()
        for spec, (q, k, v, o, row_lse) in self._walk(
            self.query, self.key, self.value, out, lse
        ):
            _kernels.softmax.attend(q, k, v, o, row_lse, spec, threads)

    def weights(self) -> Array:
        """Return the weight of every key, of shape ``(..., H, Lq, Lk)``."""
        shape = (*self.query.shape[:-1], self.key.shape[-2])
        weights = np.empty(shape, compute_dtype(self.query.dtype))
        threads = _config.current_threads()
        for spec, (q, k, w) in self._walk(self.query, self.key, weights):
            _kernels.softmax.weights(q, k, w, spec, threads)
        return weights

    def top_k(self, k: int) -> tuple[Array, Array]:
        """Return indices and weights of the most attended keys, ``(..., H, Lq, k)``."""
        shape = (*self.query.shape[:-1], k)
        indices = np.empty(shape, np.int64)
        weights = np.empty(shape, compute_dtype(self.query.dtype))
        threads = _config.current_threads()
        for spec, (q, key, i, w) in self._walk(self.query, self.key, indices, weights):
            _kernels.softmax.top_k(q, key, k, i, w, spec, threads)
        return indices, weights

    def spec(self, mask: Array | None) -> AttentionSpec:
        """Return the score function of one kernel call, with its part of the mask."""
        if mask is None:
            return AttentionSpec(**self.options)
        field = "mask" if mask.dtype == np.bool_ else "bias"
        return AttentionSpec(**{**self.options, field: mask})

    def _walk(self, *arrays: Array | None) -> Iterator[tuple[AttentionSpec, list[Any]]]:
        """Yield the arguments of one kernel call after another."""
        batch = self.query.shape[:-3]
        if 0 in self.query.shape[:-1]:
            return
        if self.mask is None:
            spec = self.spec(None)
            for chunk in batches(batch, arrays):
                yield spec, chunk
            return
        for mask, *chunk in batches(batch, (self.mask, *arrays)):
            yield self.spec(mask), chunk


def build_problem(
    arrays: tuple[Array, ...],
    names: tuple[str, ...],
    attn_mask: object,
    *,
    enable_gqa: bool,
    **options: Any,
) -> Problem:
    """Check storage arrays against each other and bring them to common axes.

    Parameters
    ----------
    arrays : tuple of ndarray
        Query, key and perhaps value; two axes alone mean one head.
    names : tuple of str
        What messages call them.
    attn_mask : object
        The caller's mask, or None.
    enable_gqa : bool
        Whether several query heads may share a key head.
    **options
        What :func:`ruvector._options.score_options` takes.
    """
    q, *kv = common_axes(arrays, names, enable_gqa)
    dtype = q.dtype
    mask = None
    scores = (*q.shape[:-1], kv[0].shape[-2])
    if attn_mask is not None:
        mask = read_mask(attn_mask, "attn_mask", compute_dtype(dtype))
        if all(x.ndim == 2 for x in arrays):
            mask = broadcast_mask(mask, "attn_mask", scores[1:])
        mask = broadcast_mask(mask, "attn_mask", scores)
    return Problem(
        q,
        kv[0],
        kv[1] if len(kv) > 1 else None,
        mask,
        score_options(
            features=q.shape[-1], heads=q.shape[-3], dtype=compute_dtype(dtype), **options
        ),
    )


def common_axes(
    arrays: tuple[Array, ...], names: tuple[str, ...], enable_gqa: bool
) -> list[Array]:
    """Check query, key and perhaps value; give them one dtype, common axes, contiguous rows.

    Parameters
    ----------
    arrays, names, enable_gqa
        As in :func:`build_problem`. A single head of keys is not repeated.
    """
    _check_shapes(arrays, names)
    dtype = promote(*arrays)
    q, *kv = [contiguous_rows(x if x.ndim > 2 else x[np.newaxis], dtype) for x in arrays]
    if any(x.shape[:-2] != q.shape[:-2] for x in kv):
        heads, key_heads = _heads([x.shape[-3] for x in (q, *kv)], names, enable_gqa)
        batch = _batch([x.shape[:-3] for x in (q, *kv)], names)
        q = _expanded(q, (*batch, heads))
        kv = [_expanded(x, (*batch, key_heads)) for x in kv]
    return [q, *kv]


def _check_shapes(arrays: tuple[Array, ...], names: tuple[str, ...]) -> None:
    for x, name in zip(arrays, names, strict=True):
        if x.ndim < 2:
            raise DimensionMismatchError(
                f"{name} must have at least 2 axes, got shape {x.shape}"
            )
    query, key = arrays[:2]
    if key.shape[-1] != query.shape[-1]:
        raise DimensionMismatchError(
            f"{names[1]} must have {query.shape[-1]} features on its last axis like "
            f"{names[0]}, got {key.shape[-1]}"
        )
    for x, name in zip(arrays[2:], names[2:], strict=True):
        if x.shape[-2] != key.shape[-2]:
            raise DimensionMismatchError(
                f"{name} must have {key.shape[-2]} rows like {names[1]}, got {x.shape[-2]}"
            )


def _heads(counts: list[int], names: tuple[str, ...], enable_gqa: bool) -> tuple[int, int]:
    """Return the numbers of query heads and of key heads after broadcasting."""
    heads, *key_counts = counts
    key_heads = next((count for count in key_counts if count != 1), 1)
    for count, name in zip(key_counts, names[1:], strict=True):
        if count not in (1, key_heads):
            raise DimensionMismatchError(
                f"{name} must have {key_heads} heads like {names[1]}, got {count}"
            )
    if heads == key_heads or key_heads == 1:
        return heads, key_heads
    if heads == 1:
        return key_heads, key_heads
    if not enable_gqa:
        raise DimensionMismatchError(
            f"{names[1]} must have {heads} heads like {names[0]} (or enable_gqa=True), "
            f"got {key_heads}"
        )
    if key_heads == 0 or heads % key_heads:
        raise DimensionMismatchError(
            f"{names[1]} must have a number of heads that divides the {heads} of {names[0]}, "
            f"got {key_heads}"
        )
    return heads, key_heads


def _batch(shapes: list[tuple[int, ...]], names: tuple[str, ...]) -> tuple[int, ...]:
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise DimensionMismatchError(
            f"{', '.join(names)} must have batch axes that broadcast, got {listed}"
        ) from None


def _expanded(x: Array, leading: tuple[int, ...]) -> Array:
    shape = (*leading, *x.shape[-2:])
    return x if x.shape == shape else np.broadcast_to(x, shape)


def batches(
    batch: tuple[int, ...], arrays: Sequence[Array | None]
) -> Iterator[list[Array | None]]:
    """Walk arrays with common leading axes as few chunks with one leading axis.

    Parameters
    ----------
    batch : tuple of int
        The leading axes that all arrays have, none of them empty; they may be broadcast.
    arrays : sequence of ndarray or None

    Yields
    ------
    list of ndarray or None
        Views with `batch` replaced by one axis; None stays None.
    """
    if len(batch) == 1:
        yield list(arrays)
        return
    if not batch:
        yield [None if x is None else x[np.newaxis] for x in arrays]
        return
    groups = _collapsible(batch, [x for x in arrays if x is not None])
    views = [None if x is None else x.reshape(*groups, *x.shape[len(batch) :]) for x in arrays]
    # The longest run is the batch axis of the kernel; the others are looped over.
    longest = max(range(len(groups)), key=groups.__getitem__)
    for index in np.ndindex(*groups[:longest], *groups[longest + 1 :]):
        here = (*index[:longest], slice(None), *index[longest:])
        yield [None if x is None else x[here] for x in views]


def _collapsible(batch: tuple[int, ...], arrays: list[Array]) -> list[int]:
    """Return the lengths of the runs of batch axes that reshape as views in all arrays."""
    groups: list[int] = []
    last = -1
    for axis, length in enumerate(batch):
        if length == 1:
            continue
        if groups and all(x.strides[last] == x.strides[axis] * length for x in arrays):
            groups[-1] *= length
        else:
            groups.append(length)
        last = axis
    return groups or [1]

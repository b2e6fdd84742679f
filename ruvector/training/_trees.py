"""One array, or lists and dicts of arrays, nested: taken apart by path and put together.

A path is the keys and positions that lead to an array, joined by dots: ``"layers.0.query"``;
that of a single array is empty.
"""

from __future__ import annotations

import sys
from array import array as py_array
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _kernels
from .._arrays import FLOAT32, FLOAT64, Array, cast, floating, view
from ..errors import DimensionMismatchError, InvalidConfigError

__all__ = ["Targets", "flat_values", "flatten", "label", "rebuild", "values_like"]

_NATIVE = frozenset({FLOAT32, FLOAT64})


def label(name: str, path: str) -> str:
    """Return what messages call the array at a path."""
    return f"{name}.{path}" if path else name


def flatten(tree: Any, name: str) -> dict[str, Any]:
    """Return the arrays of a tree by path, unchecked, in their order.

    A list of numbers, nested or not, is one array, as everywhere else.
    """
    found: dict[str, Any] = {}
    for path, leaf in _leaves(tree, (), name):
        if path in found:
            raise InvalidConfigError(f"{name} holds two arrays called {path!r}")
        found[path] = leaf
    return found


def rebuild(tree: Any, arrays: Iterable[Array]) -> Any:
    """Return a tree of the same structure with other arrays, given in order."""
    return _rebuilt(tree, iter(arrays))


def values_like(tree: Any, name: str, targets: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of a tree in the dtypes of `targets`, whose shapes they must have."""
    leaves = flatten(tree, name)
    if leaves.keys() != targets.keys():
        raise InvalidConfigError(
            f"{name} must hold the arrays of params, {sorted(targets)}, got {sorted(leaves)}"
        )
    values = {}
    for path, target in targets.items():
        value = leaves[path]
        if _is_ready(value) and value.dtype == target.dtype and value.shape == target.shape:
            values[path] = value
            continue
        value = floating(value, label(name, path))
        if value.shape != target.shape:
            raise DimensionMismatchError(
                f"{label(name, path)} must have shape {target.shape}, got {value.shape}"
            )
        values[path] = cast(value, target.dtype.newbyteorder("="))
    return values


class Targets:
    """The arrays of a tree that are to be written, checked, as flat arrays for a kernel.

    Parameters
    ----------
    tree : array, list or dict
        What the caller wants updated in place.
    name : str
        What messages call it.

    Attributes
    ----------
    arrays : dict of str to ndarray
        By path, in the caller's memory.
    flat : list of ndarray
        In the same order; one-dimensional, contiguous, aligned and native-endian: the caller's
        memory, or where that lies otherwise a copy that :meth:`write_back` brings there.

    Raises
    ------
    TypeError, InvalidConfigError
        If a leaf is no array of float32 or float64 that can be written, or two share memory.
    """

    __slots__ = ("_copies", "_highs", "_lows", "arrays", "flat")

    arrays: dict[str, Array]
    flat: list[Array]
    _copies: list[tuple[Array, Array]]
    _highs: Array
    _lows: Array

    def __init__(self, tree: Any, name: str) -> None:
        leaves = flatten(tree, name)
        self.arrays = {
            path: leaf
            if _is_ready(leaf) and leaf.flags.writeable
            else _target(leaf, name, path)
            for path, leaf in leaves.items()
        }
        self._check_apart(name)
        self.flat, self._copies = [], []
        for array in self.arrays.values():
            in_place = _is_flat(array)
            flat = array.reshape(-1) if in_place else _flat(array)
            self.flat.append(flat)
            if not in_place:
                self._copies.append((array, flat))

    def _check_apart(self, name: str) -> None:
        bounds = _kernels.optim.bounds(list(self.arrays.values()))
        order = np.lexsort(bounds.T[::-1])
        self._lows, highs = bounds[order].T
        self._highs = np.maximum.accumulate(highs)
        paths = list(self.arrays)
        # Bounds alone would forbid two columns of one matrix.
        for i in np.flatnonzero(self._lows[1:] < self._highs[:-1]) + 1:
            path = paths[order[i]]
            for other in (paths[j] for j in order[:i]):
                if np.shares_memory(self.arrays[path], self.arrays[other]):
                    raise InvalidConfigError(
                        f"{label(name, path)} must not share memory with {label(name, other)}"
                    )

    def may_overlap(self, arrays: list[Array]) -> NDArray[np.bool_]:
        """Return of each array whether its memory lies between the bounds of one of these."""
        lows, highs = _kernels.optim.bounds(arrays).T
        before = np.searchsorted(self._lows, highs)
        reach = np.concatenate((lows[:1], self._highs))[before]
        shared: NDArray[np.bool_] = (before > 0) & (reach > lows)
        return shared

    def write_back(self) -> None:
        """Bring what was written to copies into the caller's memory."""
        for array, flat in self._copies:
            array[...] = flat.reshape(array.shape)


def flat_values(values: Mapping[str, Array], targets: Targets) -> list[Array]:
    """Return arrays as a kernel reads them, none in memory that it writes."""
    arrays = list(values.values())
    return [
        np.array(value, order="C").reshape(-1) if shared else _flat(value)
        for value, shared in zip(arrays, targets.may_overlap(arrays).tolist(), strict=True)
    ]


def _leaves(tree: Any, path: tuple[str, ...], name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str):
                raise InvalidConfigError(f"{name} must have strings for keys, got {key!r}")
        items: Iterable[tuple[str, Any]] = tree.items()
    elif isinstance(tree, list | tuple) and not _is_numbers(tree):
        items = ((str(i), item) for i, item in enumerate(tree))
    else:
        yield ".".join(path), tree
        return
    for key, item in items:
        if type(item) is np.ndarray:
            # Without the recursion, for trees of many small arrays.
            yield ".".join((*path, key)), item
            continue
        yield from _leaves(item, (*path, key), name)


def _is_numbers(tree: Any) -> bool:
    while isinstance(tree, list | tuple) and tree:
        tree = tree[0]
    return isinstance(tree, Real | np.generic)


def _rebuilt(tree: Any, arrays: Iterator[Array]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _rebuilt(item, arrays) for key, item in tree.items()}
    if isinstance(tree, list | tuple) and not _is_numbers(tree):
        items = [_rebuilt(item, arrays) for item in tree]
        return items if isinstance(tree, list) else tuple(items)
    return next(arrays)


def _is_ready(leaf: Any) -> bool:
    """Return whether this is an array that kernels can read where it lies, and no subclass."""
    return type(leaf) is np.ndarray and leaf.dtype in _NATIVE and _is_flat(leaf)


def _target(leaf: Any, name: str, path: str) -> Array:
    name = label(name, path)
    torch = sys.modules.get("torch")
    in_place = isinstance(leaf, np.ndarray | py_array | memoryview) or (
        torch is not None and isinstance(leaf, torch.Tensor)
    )
    if not in_place:
        raise TypeError(
            f"{name} must be an array, because it is updated in place, "
            f"got {type(leaf).__name__}"
        )
    target, is_bfloat16 = view(leaf, name)
    if is_bfloat16 or target.dtype.newbyteorder("=") not in (FLOAT32, FLOAT64):
        kind = "bfloat16" if is_bfloat16 else target.dtype
        raise TypeError(f"{name} must have dtype float32 or float64, got {kind}")
    if not target.flags.writeable:
        raise InvalidConfigError(f"{name} must be writeable, got a read-only array")
    steps = zip(target.strides, target.shape, strict=True)
    if target.size and any(step == 0 and size > 1 for step, size in steps):
        raise InvalidConfigError(f"{name} must not repeat its elements, got a broadcast array")
    return target


def _is_flat(x: Array) -> bool:
    flags = x.flags
    return bool(flags.c_contiguous and flags.aligned and x.dtype.isnative)


def _flat(x: Array) -> Array:
    if not _is_flat(x):
        x = np.array(x, x.dtype.newbyteorder("="), order="C")
    return x.reshape(-1)

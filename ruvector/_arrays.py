"""The one place where user input becomes a checked array.

A *storage array* is what kernels read: float32, float64, float16, or uint16 that means
bfloat16 bits. NumPy alone has no bfloat16, so from here on uint16 always stands for it
(integer input has become float32 by then).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DimensionMismatchError, InvalidConfigError

__all__ = [
    "BFLOAT16",
    "Array",
    "Output",
    "cast",
    "compute_dtype",
    "contiguous_rows",
    "finished",
    "floating",
    "integers",
    "kept",
    "promote",
    "vectors",
    "view",
]

Array = NDArray[Any]
DType = np.dtype[Any]

FLOAT16, FLOAT32, FLOAT64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64))
BFLOAT16 = np.dtype(np.uint16)
_INT64 = np.iinfo(np.int64)
_FLOATS = frozenset({FLOAT16, FLOAT32, FLOAT64})

_REAL = "real numbers (float16, bfloat16, float32, float64, integer or bool)"


def view(x: object, name: str) -> tuple[Array, bool]:
    """View anything array-like as an ndarray, without a copy where NumPy can.

    Parameters
    ----------
    x : object
        An array of any kind, a CPU torch tensor, a buffer, a DLPack or ``__array__``
        exporter, nested lists of numbers (which become float32), or a sequence of arrays.
    name : str
        What messages call it.

    Returns
    -------
    array : ndarray
        Of any dtype.
    is_bfloat16 : bool
        Whether the array is the uint16 view of bfloat16.

    Raises
    ------
    TypeError
        If it cannot be viewed, or only without its mask.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: pass x.data")
    if isinstance(x, np.ndarray):
        return _from_numpy(np.asarray(x))
    if _is_tensor(x):
        return _from_torch(x, name)
    if isinstance(x, list | tuple):
        return _from_sequence(x, name)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        try:
            return _from_numpy(np.from_dlpack(x))
        except (BufferError, RuntimeError, TypeError) as error:
            raise TypeError(f"{name} cannot be read through DLPack: {error}") from error
    return _from_numpy(np.asarray(x))


def floating(x: object, name: str) -> Array:
    """Turn user input into a storage array; integers and bool become float32.

    Strides, alignment and the writeable flag are the input's own wherever nothing had to
    be converted.

    Raises
    ------
    TypeError
        If the input is complex, an object, a string, or anything else that is not a real
        number of at most 64 bits.
    """
    if type(x) is np.ndarray and x.dtype in _FLOATS:
        return x
    array, is_bfloat16 = view(x, name)
    return array if is_bfloat16 else _real(array, name)


def kept(x: object, name: str) -> Array:
    """Turn user input into an array that goes through these checks again, unchanged.

    It is a storage array, but that bfloat16 has its own dtype, and that a map of a file is
    still one.
    """
    array = floating(x, name)
    if isinstance(x, np.ndarray) and (x.dtype == array.dtype or array.dtype == BFLOAT16):
        return x
    return array if array.dtype != BFLOAT16 else array.view(_ml_bfloat16())


def vectors(x: object, name: str) -> Array:
    """Turn a matrix or a sequence of vectors into a storage array.

    An empty sequence has no second axis; it becomes shape ``(0, 0)``.
    """
    array = floating(x, name)
    return array.reshape(0, 0) if array.ndim == 1 and array.shape[0] == 0 else array


def integers(x: object, name: str) -> NDArray[np.int64]:
    """Turn user input into a contiguous int64 array.

    Raises
    ------
    InvalidConfigError
        If a number does not fit into int64.
    TypeError
        If the input has another dtype than an integer one.
    """
    array, is_bfloat16 = view(x, name)
    if is_bfloat16 or (array.dtype.kind not in "iu" and array.size):
        if isinstance(x, list | tuple):
            # NumPy makes floats or objects of Python's integers when they are too large.
            _check_range(np.array(x, object), name)
        kind = "bfloat16" if is_bfloat16 else str(array.dtype)
        raise TypeError(f"{name} must hold integers, got dtype {kind}")
    if array.dtype.kind == "u":
        _check_range(array, name)
    return np.require(array, np.int64, ["C", "A"])


def promote(*arrays: Array) -> DType:
    """Return the storage dtype in which arrays are computed together, as NumPy promotes."""
    first: DType = arrays[0].dtype
    if all(array.dtype == first for array in arrays):
        return first
    # bfloat16 and float16 hold each other's values in neither direction: float32.
    return np.result_type(*(FLOAT32 if a.dtype == BFLOAT16 else a.dtype for a in arrays))


def compute_dtype(storage: DType) -> DType:
    """Return the dtype of the arithmetic on (and of L beside) a storage dtype."""
    return FLOAT64 if storage == FLOAT64 else FLOAT32


def cast(x: Array, dtype: DType) -> Array:
    """Convert a storage array of any strides, and align it; broadcast axes stay so."""
    return x if x.dtype == dtype and x.flags.aligned else _converted(x, dtype, x.ndim)


def contiguous_rows(x: Array, dtype: DType) -> Array:
    """Convert to a dtype and to rows that kernels can read: itself, or one copy.

    A row is the last axis; it must lie in one piece and be aligned. Leading axes keep any
    strides, and broadcast ones are not repeated in memory.
    """
    if x.dtype == dtype and _has_contiguous_rows(x):
        return x
    if dtype == BFLOAT16 != x.dtype:
        x = x.astype(_ml_bfloat16()).view(BFLOAT16)
    return _converted(x, dtype, x.ndim - 1)


def finished(x: Array, shape: tuple[int, ...], dtype: DType) -> Array:
    """Bring what was computed to the shape and the storage dtype that the caller gets."""
    x = x.reshape(shape)
    if dtype != BFLOAT16:
        return cast(x, dtype)
    bfloat16 = _ml_bfloat16()
    return x.view(bfloat16) if x.dtype == BFLOAT16 else x.astype(bfloat16)


class Output:
    """Where a result goes: a fresh array, or the caller's ``out``.

    Everything that can be wrong with ``out`` is raised here, before anything is computed.

    Parameters
    ----------
    out : object
        The caller's ndarray or CPU torch tensor, or None.
    shape : tuple of int
        Shape of the result.
    dtype : dtype
        Storage dtype of the result.
    work_dtype : dtype
        Storage dtype that the kernel writes.
    inputs : iterable of ndarray or None
        What the kernel reads while it writes.

    Attributes
    ----------
    work : ndarray
        What the kernel writes, of `shape` and `work_dtype`.
    """

    __slots__ = ("_bfloat16", "_result", "_target", "work")

    def __init__(
        self,
        out: object,
        shape: tuple[int, ...],
        dtype: DType,
        work_dtype: DType,
        inputs: Iterable[Array | None] = (),
    ) -> None:
        self._bfloat16: DType | None = None
        if dtype == BFLOAT16 and (out is None or work_dtype != BFLOAT16):
            self._bfloat16 = _ml_bfloat16()
        if out is None:
            target = np.empty(shape, dtype)
            self._result: Any = (
                target if self._bfloat16 is None else target.view(self._bfloat16)
            )
            direct = True
        else:
            target = _writeable(out, shape, dtype)
            self._result = out
            # Bounds only: an exact answer can take exponential time, and a temporary array
            # is right either way.
            direct = _has_contiguous_rows(target) and not any(
                x is not None and np.may_share_memory(target, x) for x in inputs
            )
        self._target = target
        self.work = target if direct and dtype == work_dtype else np.empty(shape, work_dtype)

    def deliver(self) -> Any:
        """Return the finished result, once the kernel has written `work`."""
        if self.work is not self._target:
            with np.errstate(all="ignore"):
                if self._bfloat16 is None:
                    self._target[...] = self.work
                else:
                    self._target[...] = self.work.astype(self._bfloat16).view(BFLOAT16)
        return self._result


def _check_range(array: Array, name: str) -> None:
    """Raise where there are only integers and one does not fit into int64."""
    if array.dtype == object and not all(type(entry) is int for entry in array.flat):
        return
    for extreme in (array.max(initial=0), array.min(initial=0)):
        if not _INT64.min <= extreme <= _INT64.max:
            raise InvalidConfigError(f"{name} must hold integers that fit int64, got {extreme}")


def _writeable(out: object, shape: tuple[int, ...], dtype: DType) -> Array:
    if not (isinstance(out, np.ndarray) or _is_tensor(out)):
        raise TypeError(f"out must be an array, got {type(out).__name__}")
    target, is_bfloat16 = view(out, "out")
    if is_bfloat16 != (dtype == BFLOAT16) or not (is_bfloat16 or target.dtype == dtype):
        got = "bfloat16" if is_bfloat16 else target.dtype
        wanted = "bfloat16" if dtype == BFLOAT16 else dtype
        raise TypeError(f"out must have dtype {wanted}, got {got}")
    if target.shape != shape:
        raise DimensionMismatchError(f"out must have shape {shape}, got {target.shape}")
    if not target.flags.writeable:
        raise InvalidConfigError("out must be writeable, got a read-only array")
    return target


def _from_numpy(array: Array) -> tuple[Array, bool]:
    # ml_dtypes registers its bfloat16 under this name; no import is needed to see it.
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        return array.view(BFLOAT16), True
    return array, False


def _is_tensor(x: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _from_torch(x: Any, name: str) -> tuple[Array, bool]:
    torch = sys.modules["torch"]
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise TypeError(
            f"{name} must be a dense CPU tensor, got layout {x.layout} on device {x.device}"
        )
    x = x.detach().resolve_neg()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(BFLOAT16), True
    try:
        return x.numpy(), False
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} must hold {_REAL}, got dtype {x.dtype}") from error


def _is_array(x: object) -> bool:
    if isinstance(x, np.generic | str | bytes):
        return False
    if hasattr(x, "__array__") or hasattr(x, "__dlpack__"):
        return True
    try:
        memoryview(x)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _from_sequence(x: list[Any] | tuple[Any, ...], name: str) -> tuple[Array, bool]:
    leaf: Any = x
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    if _is_array(leaf):
        return _stacked([view(item, f"{name}[{i}]") for i, item in enumerate(x)], name)
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise DimensionMismatchError(
            f"{name} must have rows of one length, got a ragged sequence"
        ) from error
    # Python's float says nothing about a precision; NumPy's scalars do.
    if array.dtype.kind == "f" and not isinstance(leaf, np.generic):
        array = array.astype(FLOAT32)
    return _from_numpy(array)


def _stacked(items: list[tuple[Array, bool]], name: str) -> tuple[Array, bool]:
    shape = items[0][0].shape
    for i, (array, _) in enumerate(items):
        if array.shape != shape:
            raise DimensionMismatchError(
                f"{name}[{i}] must have shape {shape} like {name}[0], got {array.shape}"
            )
    if all(is_bfloat16 for _, is_bfloat16 in items):
        return np.stack([array for array, _ in items]), True
    if len({(array.dtype, is_bfloat16) for array, is_bfloat16 in items}) == 1:
        return np.stack([array for array, _ in items]), False
    arrays = [
        array if is_bfloat16 else _real(array, f"{name}[{i}]")
        for i, (array, is_bfloat16) in enumerate(items)
    ]
    dtype = promote(*arrays)
    return np.stack([cast(array, dtype) for array in arrays]), False


def _real(array: Array, name: str) -> Array:
    dtype = array.dtype
    if dtype.kind == "f":
        native = dtype.newbyteorder("=")
        if native in _FLOATS:
            return array if native == dtype else _converted(array, native, array.ndim)
    elif dtype.kind in "biu":
        return _converted(array, FLOAT32, array.ndim, storage=False)
    raise TypeError(f"{name} must hold {_REAL}, got dtype {dtype}")


def _has_contiguous_rows(x: Array) -> bool:
    return bool(x.ndim and (x.strides[-1] == x.itemsize or x.shape[-1] < 2) and x.flags.aligned)


def _converted(x: Array, dtype: DType, keep: int, *, storage: bool = True) -> Array:
    # The axes before `keep` that are broadcast are copied once and broadcast again.
    core = x
    if 0 in x.strides[:keep]:
        core = x[tuple(slice(None) if step else slice(0, 1) for step in x.strides[:keep])]
    if storage and x.dtype == BFLOAT16 and dtype != BFLOAT16:
        core = (core.astype(np.uint32) << np.uint32(16)).view(FLOAT32)
    with np.errstate(all="ignore"):
        copy = np.array(core, dtype=dtype, order="C")
    return copy if copy.shape == x.shape else np.broadcast_to(copy, x.shape)


def _ml_bfloat16() -> DType:
    try:
        from ml_dtypes import bfloat16
    except ImportError as error:
        raise ImportError(
            "a bfloat16 result needs ml_dtypes: pip install 'ruvector[lowp]'"
        ) from error
    dtype: DType = np.dtype(bfloat16)
    return dtype

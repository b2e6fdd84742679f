"""ruvector.h through ctypes: the table in the capsule, and its structures."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np

import ruvector

HEADER = Path(ruvector.get_include(), "ruvector_abi.h")


def constants():
    """Return every RUVECTOR_... number that the header names."""
    text = HEADER.read_text(encoding="utf-8")
    pairs = re.findall(r"\b(RUVECTOR_\w+) = (-?\d+)", text)
    return {name.removeprefix("RUVECTOR_"): int(number) for name, number in pairs}


C = constants()
STATUSES = [C[name] for name in C if name == "OK" or name.startswith("ERROR_")]

Size, Int, Pointer, Double = (ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_double)


class Attention(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, Int) for name in ("dtype", "threads")),
        *(
            (name, Size)
            for name in ("batch", "heads", "kv_heads", "queries", "keys", "dim", "value_dim")
        ),
        *((name, Pointer) for name in ("query", "key", "value", "out", "lse")),
        *((f"{name}_strides", Size * 3) for name in ("query", "key", "value", "out", "lse")),
        *((name, Double) for name in ("scale", "softcap")),
        *((name, Int) for name in ("causal", "bottom_right")),
        *((name, Size) for name in ("window_left", "window_right", "sink_tokens")),
        ("mask", Pointer),
        ("mask_strides", Size * 4),
        ("bias", Pointer),
        ("bias_strides", Size * 4),
        *((name, Pointer) for name in ("sink_logits", "alibi_slopes")),
    )


class Merge(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("dtype", Int),
        *((name, Size) for name in ("parts", "rows", "dim")),
        *((name, Pointer) for name in ("outputs", "lses", "out", "lse")),
        *((f"{name}_strides", Size * 2) for name in ("outputs", "lses")),
        *((f"{name}_stride", Size) for name in ("out", "lse")),
    )


class Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("abi_version", Int),
        ("version", ctypes.c_char_p),
        ("attention", ctypes.CFUNCTYPE(Int, Pointer)),
        ("attention_layout", ctypes.CFUNCTYPE(Int, Pointer, Int)),
        ("merge", ctypes.CFUNCTYPE(Int, Pointer)),
        ("message", ctypes.CFUNCTYPE(ctypes.c_char_p, Int)),
        ("isa", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def api():
    """Return the table of the installed package, as ruvector_import() finds it."""
    from ruvector._kernels import capi

    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = Pointer, (ctypes.py_object, ctypes.c_char_p)
    return Api.from_address(get(capi._api, b"ruvector._kernels.capi._api"))


def dtype_of(array):
    return C[
        {"float32": "F32", "float64": "F64", "float16": "F16"}.get(array.dtype.name, "BF16")
    ]


def attention_args(query, key, value, out, lse=None, mask=None, bias=None, **options):
    """Return the arguments of a call over (B, H, L, D) arrays of any strides."""
    args = Attention(size=ctypes.sizeof(Attention), threads=1, window_left=-1, window_right=-1)
    args.dtype = dtype_of(query)
    args.batch, args.heads, args.queries, args.dim = query.shape
    args.kv_heads, args.keys, args.value_dim = (*key.shape[1:3], value.shape[3])
    arrays = {"query": query, "key": key, "value": value, "out": out, "lse": lse}
    for name, array in arrays.items():
        if array is not None:
            setattr(args, name, array.ctypes.data)
            setattr(args, f"{name}_strides", (Size * 3)(*array.strides[:3]))
    for name, array in {"mask": mask, "bias": bias}.items():
        if array is not None:
            setattr(args, name, array.ctypes.data)
            setattr(args, f"{name}_strides", (Size * 4)(*array.strides))
    for name, option in options.items():
        is_array = isinstance(option, np.ndarray)
        setattr(args, name, option.ctypes.data if is_array else option)
    return args


def merge_args(outputs, lses, out, lse):
    """Return the arguments of a merge of (P, R, D) outputs and (P, R) lses."""
    args = Merge(size=ctypes.sizeof(Merge), dtype=dtype_of(outputs))
    args.parts, args.rows, args.dim = outputs.shape
    for name, array in {"outputs": outputs, "lses": lses, "out": out, "lse": lse}.items():
        setattr(args, name, array.ctypes.data)
    args.outputs_strides = (Size * 2)(*outputs.strides[:2])
    args.lses_strides = (Size * 2)(*lses.strides)
    args.out_stride, args.lse_stride = out.strides[0], lse.strides[0]
    return args

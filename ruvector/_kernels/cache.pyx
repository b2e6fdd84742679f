"""Rows of vectors brought to a storage type and back: the compiled twin of fallback/cache.py.

Every row is read once, widened to floats in a scratch row, checked, and written narrowed or
as whole numbers; the mathematics is in simd/quantize.inc.h. One thread: it is one pass over
what is appended.
"""

cimport numpy as cnp
from libc.stdint cimport int8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from ruvector._kernels cimport _dispatch
from ruvector._kernels._dispatch cimport RV_F16, RV_F32, RV_F64, RV_I8, rv_softmax_tiles
from ruvector._kernels._numpy cimport data, length, stored_type, stride

cnp.import_array()

# Bits of the smallest floats that float16 and bfloat16 round to infinity, and of infinity.
cdef uint32_t INFINITE = 0x7f800000
cdef uint32_t FLOAT16_END = 0x477ff000
cdef uint32_t BFLOAT16_END = 0x7f7f8000


cdef struct Rows:
    # Rows (n, heads, d) of one type: strides in bytes, scales null or of each head.
    char *at
    char *scales
    Py_ssize_t row, head, scale_head
    int type


cdef int describe(Rows *rows, cnp.ndarray array, object scales) except -1:
    cdef cnp.ndarray factors
    rows.at = data(array)
    rows.row, rows.head = stride(array, 0), stride(array, 1)
    rows.type = stored_type(array)
    if rows.type == RV_F64:
        raise TypeError(f"no kernel for arrays of {array.dtype}")
    rows.scales, rows.scale_head = NULL, 0
    if scales is not None:
        factors = scales
        rows.scales = data(factors)
        rows.scale_head = stride(factors, 0)
    return 0


cdef inline float *scale_at(const Rows *rows, Py_ssize_t i, Py_ssize_t h) noexcept nogil:
    return <float *> (rows.scales + h * rows.scale_head) + i


cdef inline void widen(const Rows *rows, Py_ssize_t i, Py_ssize_t h, Py_ssize_t dim,
                       float *out) noexcept nogil:
    cdef const rv_softmax_tiles *tiles = _dispatch.tiles().wide[rows.type]
    cdef const char *source = rows.at + i * rows.row + h * rows.head
    if tiles.load_keys == NULL:
        memcpy(out, source, dim * sizeof(float))
    else:
        tiles.load_keys(source, dim, 1, dim, out)
    if rows.scales != NULL:
        tiles.scale_rows(out, 1, dim, scale_at(rows, i, h))


cdef bint narrow(const Rows *rows, Py_ssize_t i, Py_ssize_t h, Py_ssize_t dim,
                 const float *row) noexcept nogil:
    """Write a row of floats, which may be read up to the next whole vector."""
    cdef const _dispatch.rv_table *table = _dispatch.tiles()
    cdef char *target = rows.at + i * rows.row + h * rows.head
    cdef float one = 1
    cdef uint32_t end
    if rows.type == RV_I8:
        return table.quantize(row, dim, <int8_t *> target, scale_at(rows, i, h))
    if rows.type == RV_F32:
        memcpy(target, row, dim * sizeof(float))
        return True
    end = FLOAT16_END if rows.type == RV_F16 else BFLOAT16_END
    if table.any_between(row, dim, end, INFINITE):
        return False
    table.decode[rows.type].finish(&one, &one, row, dim, target, NULL)
    return True


cdef bint convert(const Rows *rows, const Rows *out, Py_ssize_t n, Py_ssize_t heads,
                  Py_ssize_t dim, Py_ssize_t item, float *scratch) noexcept nogil:
    cdef Py_ssize_t i, h
    for i in range(n):
        for h in range(heads):
            if item:
                memcpy(out.at + i * out.row + h * out.head,
                       rows.at + i * rows.row + h * rows.head, dim * item)
                continue
            widen(rows, i, h, dim, scratch)
            if not narrow(out, i, h, dim, scratch):
                return False
    return True


cdef float *new_scratch(Py_ssize_t dim) except NULL:
    # Room up to the next whole vector.
    cdef float *scratch = <float *> malloc((dim + 64) * sizeof(float))
    if scratch == NULL:
        raise MemoryError("no memory for a row of a cache")
    return scratch


def store_rows(cnp.ndarray rows not None, cnp.ndarray out not None, scales):
    """Write rows in the storage type of `out`."""
    cdef Rows source, target
    cdef Py_ssize_t n = length(rows, 0), heads = length(rows, 1)
    cdef Py_ssize_t dim = length(rows, 2), item
    cdef float *scratch
    cdef bint fits
    describe(&source, rows, None)
    describe(&target, out, scales)
    item = rows.itemsize if source.type == target.type else 0
    scratch = new_scratch(dim)
    with nogil:
        fits = convert(&source, &target, n, heads, dim, item, scratch)
    free(scratch)
    return fits


def load_rows(cnp.ndarray stored not None, scales):
    """Read rows as float32: a view of those that are."""
    cdef Rows source
    cdef cnp.npy_intp shape[3]
    cdef cnp.ndarray out
    cdef float *at
    cdef Py_ssize_t i, h
    describe(&source, stored, scales)
    if source.type == RV_F32:
        return stored
    shape[0], shape[1] = length(stored, 0), length(stored, 1)
    shape[2] = length(stored, 2)
    out = cnp.PyArray_EMPTY(3, shape, cnp.NPY_FLOAT32, 0)
    at = <float *> data(out)
    with nogil:
        for i in range(shape[0]):
            for h in range(shape[1]):
                widen(&source, i, h, shape[2], at)
                at += shape[2]
    return out

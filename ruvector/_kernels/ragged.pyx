"""Attention over a memory of its own for each query: the compiled engine's face for lists.

Arguments and results are those of the NumPy twin, fallback/ragged.py, whose docstring
describes them. Every memory becomes a segment of one call of the engine that points at the
arrays where they lie, so nothing is packed or padded; the engine spreads segments over the
threads as these come free. Memory: one segment a memory beside the engine's own.
"""

cimport numpy as cnp
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ruvector._kernels._calls cimport describe
from ruvector._kernels._engine cimport run
from ruvector._kernels._numpy cimport data, is_plain, length, stride
from ruvector._kernels._problem cimport Call, Segment

cnp.import_array()


cdef int fill_segments(const Call *call, Segment *segments, Py_ssize_t count,
                       cnp.ndarray query, list keys, list values, cnp.ndarray ends,
                       cnp.ndarray out, bint bottom_right) except -1:
    cdef const int64_t *rows = <const int64_t *> data(ends)
    cdef Segment *segment
    cdef Py_ssize_t s
    for s in range(count):
        segment = segments + s
        segment.lq = rows[s + 1] - rows[s]
        segment.lk = length(keys[s], 0)
        segment.offset = segment.lk - segment.lq if bottom_right else 0
        segment.q = data(query) + rows[s] * call.q_row
        segment.k = data(keys[s])
        segment.v = data(values[s])
        segment.out = data(out) + rows[s] * call.out_row
    return 0


def plain(list queries not None, list keys not None, list values not None, Py_ssize_t dim):
    """Tell whether memories and their queries are what `attend` takes, as they are."""
    cdef Py_ssize_t count = len(queries), width = -1, s
    cdef object query, key, value
    if count == 0 or len(keys) != count or len(values) != count:
        return False
    for s in range(count):
        query, key, value = queries[s], keys[s], values[s]
        if not (is_plain(query, 1) and is_plain(key, 2) and is_plain(value, 2)):
            return False
        if width < 0:
            width = length(value, 1)
        if (length(query, 0) != dim or length(key, 1) != dim or length(value, 1) != width
                or length(key, 0) != length(value, 0)):
            return False
    return True


def attend(cnp.ndarray query not None, list keys not None, list values not None,
           cnp.ndarray ends not None, cnp.ndarray out not None, spec, int threads):
    """Attend from every query row to its own memory."""
    cdef Call call
    cdef Segment *segments
    cdef Py_ssize_t count = length(ends, 0) - 1, size = cnp.PyArray_ITEMSIZE(query)
    if length(query, 2) == 0:
        return
    describe(&call, query, query, spec)
    call.dim_v = length(out, 3)
    call.k_head, call.v_head = call.dim * size, call.dim_v * size
    call.k_row, call.v_row = call.heads * call.k_head, call.heads * call.v_head
    call.out_head, call.out_row = stride(out, 1), stride(out, 2)
    segments = <Segment *> malloc(count * sizeof(Segment))
    if segments == NULL:
        raise MemoryError("no memory for the attention engine's segments")
    memset(segments, 0, count * sizeof(Segment))
    try:
        fill_segments(&call, segments, count, query, keys, values, ends, out,
                      spec.bottom_right)
        with nogil:
            run(&call, segments, count, threads)
    finally:
        free(segments)

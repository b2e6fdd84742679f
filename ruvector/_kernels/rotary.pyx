"""Vectors turned by rotary positions: the compiled kernel's Python face.

Arguments and results are those of the NumPy twin, fallback/rotary.py, whose docstring
describes them. The mathematics is in simd/rotary.inc.h.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._dispatch cimport rv_decode_tiles, rv_rotary_tiles, tiles
from ruvector._kernels._numpy cimport data, dtype_of, length, stride
from ruvector._kernels._openmp cimport team_size, thread_index

cnp.import_array()

# Numbers below which a thread costs more than it saves, and between two looks at signals.
cdef Py_ssize_t SMALL_WORK = 1 << 18
cdef Py_ssize_t SLAB_WORK = 1 << 28


cdef struct Rows:
    # Vectors of `heads` heads; strides in bytes.
    const rv_rotary_tiles *rotary
    const rv_decode_tiles *tiles
    const char *x
    char *out
    const int64_t *positions
    const char *table
    Py_ssize_t count, dim, x_row, x_head, out_row, out_head
    int heads
    bint neighbours


cdef inline void turn_row(const Rows *rows, Py_ssize_t i, char *turned) noexcept nogil:
    """Turn one vector and store it; storing is what finishes a row whose sum is one."""
    cdef const rv_decode_tiles *t = rows.tiles
    cdef double one_double = 1.0
    cdef float one_float = 1.0
    cdef const void *one = &one_float
    cdef int h
    if t.real == sizeof(double):
        one = &one_double
    rows.rotary.rotate(rows.x + i * rows.x_row, 0, rows.x_head // t.item, 1, rows.heads,
                       rows.dim, rows.positions + i, rows.table, rows.neighbours, turned)
    for h in range(rows.heads):
        t.finish(one, one, turned + h * rows.dim * t.real, rows.dim,
                 rows.out + i * rows.out_row + h * rows.out_head, NULL)


cdef int turn_rows(const Rows *rows, int threads) except -1 nogil:
    cdef Py_ssize_t width = rows.heads * rows.dim, start = 0, stop, i
    cdef Py_ssize_t slab = max(<Py_ssize_t> 1, SLAB_WORK // width)
    # A row is read in whole vectors when it is stored.
    cdef Py_ssize_t size = (width * rows.tiles.real + 2 * 64) & ~<Py_ssize_t> 63
    cdef char *memory
    threads = 1 if rows.count * width < SMALL_WORK else team_size(threads, rows.count)
    memory = <char *> malloc(threads * size)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for a turned row")
    try:
        while start < rows.count:
            stop = min(rows.count, start + slab)
            for i in prange(start, stop, schedule="static", num_threads=threads,
                            use_threads_if=threads > 1):
                turn_row(rows, i, memory + thread_index() * size)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0


def rotate(cnp.ndarray x not None, cnp.ndarray out not None, cnp.ndarray positions not None,
           cnp.ndarray table not None, bint neighbours, int threads):
    """Turn every head of every vector by the position where the vector stands."""
    cdef int dtype = dtype_of(x)
    cdef Rows rows
    if cnp.PyArray_SIZE(x) == 0:
        return
    rows.rotary, rows.tiles = tiles().rotary[dtype], tiles().decode[dtype]
    rows.x, rows.out = data(x), data(out)
    rows.positions = <const int64_t *> data(positions)
    rows.table = data(table)
    rows.count, rows.heads = length(x, 0), <int> length(x, 1)
    rows.dim = length(x, 2)
    rows.x_row, rows.x_head = stride(x, 0), stride(x, 1)
    rows.out_row, rows.out_head = stride(out, 0), stride(out, 1)
    rows.neighbours = neighbours
    with nogil:
        turn_rows(&rows, threads)

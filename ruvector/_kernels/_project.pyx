"""Rows times a matrix, out = x W^T, on the score tiles of the softmax engine.

The columns of the output lie across the lanes: W is packed once a call, the rows of x are
read in place, 96 of them an item. A few rows alone read W in place instead, as decoding
reads keys. Summation order depends on shapes alone, so the bits do not depend on threads,
which those of a BLAS may.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._dispatch cimport rv_decode_tiles, rv_softmax_tiles
from ruvector._kernels._openmp cimport team_size, thread_index

# Rows up to which packing W costs more than it saves.
cdef Py_ssize_t FEW_ROWS = 6
# As in the engine: what is too small for threads, and what runs between two signal checks.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef enum:
    MAX_COLS = 64


cdef inline Py_ssize_t up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef inline bint stored(const Projection *p) noexcept nogil:
    # Whether rows of x must become rows of reals.
    return p.dtype != p.real


cdef void pack(const Projection *p, char *packed) noexcept nogil:
    """Lay W out by groups of columns of the output, the last row repeated."""
    cdef const rv_softmax_tiles *t = p.table.softmax[p.real]
    cdef const void *rows[MAX_COLS]
    cdef Py_ssize_t start = 0
    cdef int c, cols
    while start < p.width:
        cols = group_cols(p, start)
        for c in range(cols):
            rows[c] = p.weight + min(start + c, p.width - 1) * p.weight_row
        t.pack(rows, cols, p.dim, 1.0, packed + start * p.dim * t.real)
        start += cols


cdef inline int group_cols(const Projection *p, Py_ssize_t start) noexcept nogil:
    cdef const rv_softmax_tiles *t = p.table.softmax[p.real]
    return t.lanes if p.width - start <= t.lanes else t.cols


cdef void project_tile(const Projection *p, const char *packed, Py_ssize_t start,
                       char *memory) noexcept nogil:
    """One item: a tile of rows, every column."""
    cdef const rv_softmax_tiles *t = p.table.softmax[p.real]
    cdef int n = <int> min(<Py_ssize_t> t.key_tile, p.rows - start), i, cols
    cdef const char *x = p.x + start * p.x_row
    cdef Py_ssize_t ldx = p.x_row // t.item, column = 0, bytes
    cdef char *s = memory
    cdef char *reals = memory + t.key_tile * t.cols * t.real
    if stored(p):
        p.table.ball[p.dtype].load(x, p.x_row // p.table.softmax[p.dtype].item, n, p.dim,
                                   reals)
        x, ldx = reals, p.dim
    while column < p.width:
        cols = group_cols(p, column)
        bytes = min(<Py_ssize_t> cols, p.width - column) * t.real
        t.scores(packed + column * p.dim * t.real, cols, x, ldx, n, p.dim, s)
        for i in range(n):
            memcpy(p.out + (start + i) * p.out_row + column * t.real, s + i * cols * t.real,
                   bytes)
        column += cols


cdef int project_tiles(const Projection *p, int threads) except -1 nogil:
    cdef const rv_softmax_tiles *t = p.table.softmax[p.real]
    cdef Py_ssize_t count = (p.rows + t.key_tile - 1) // t.key_tile, start = 0, stop, i, slab
    cdef Py_ssize_t packed = up(up(p.width, t.cols) * p.dim * t.real, 64)
    cdef Py_ssize_t scratch = up(t.key_tile * (t.cols + p.dim * stored(p)) * t.real, 64)
    cdef double work = <double> p.rows * p.dim * p.width
    cdef char *memory
    cdef char *base
    threads = 1 if work < SMALL_WORK else team_size(threads, count)
    memory = <char *> malloc(packed + threads * scratch + 64)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the packed matrix")
    base = <char *> up(<Py_ssize_t> memory, 64)
    pack(p, base)
    slab = threads + <Py_ssize_t> (count * (SLAB_WORK / max(work, 1.0)))
    try:
        while start < count:
            stop = min(count, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                project_tile(p, base, i * t.key_tile,
                             base + packed + thread_index() * scratch)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0


cdef int project_few(const Projection *p) except -1 nogil:
    """A few rows: each against the rows of W, read in place."""
    cdef const rv_decode_tiles *t = p.table.decode[p.real]
    cdef Py_ssize_t ldx = up(p.dim, t.lanes), column = 0, r
    cdef char *memory = <char *> malloc(p.rows * (ldx + t.key_tile) * t.real + 64)
    cdef char *s = memory + p.rows * ldx * t.real
    cdef int n
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the rows")
    for r in range(p.rows):
        p.table.decode[p.dtype].load_query(p.x + r * p.x_row, p.dim, 1.0,
                                           memory + r * ldx * t.real)
    while column < p.width:
        n = <int> min(<Py_ssize_t> t.key_tile, p.width - column)
        t.scores(memory, ldx, p.weight + column * p.weight_row, p.weight_row // t.item, 0, n,
                 1, <int> p.rows, p.dim, s, t.key_tile)
        for r in range(p.rows):
            memcpy(p.out + r * p.out_row + column * t.real, s + r * t.key_tile * t.real,
                   n * t.real)
        column += n
    free(memory)
    return 0


cdef int run_projection(const Projection *p, int threads) except -1 nogil:
    """Compute every row of out."""
    if p.rows == 0 or p.width == 0:
        return 0
    if p.rows <= FEW_ROWS:
        return project_few(p)
    return project_tiles(p, threads)

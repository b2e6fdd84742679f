"""The transpose of rows times rows, out = G^T X, on the value tiles of the softmax engine.

Columns of X lie across the lanes: 96 rows of a group of them are copied together, and every
column of G is one broadcast. An item is a group of columns of X by some columns of G, and
walks over all rows: the order of summation depends on shapes alone. Each tile of rows is
summed on its own and then added, so that long sums keep their digits.
"""

from cython.parallel cimport prange
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._openmp cimport team_size, thread_index

# Columns of G in one item: enough that copying those of X does not matter.
cdef Py_ssize_t ITEM_COLUMNS = 96
# Multiply-adds below which waking a thread costs more than it saves, and multiply-adds
# between two looks at pending signals.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef inline Py_ssize_t up(Py_ssize_t n, Py_ssize_t unit) noexcept nogil:
    return (n + unit - 1) // unit * unit


cdef void gram_item(const Gram *p, Py_ssize_t item, char *memory) noexcept nogil:
    cdef const rv_softmax_tiles *t = p.tiles
    cdef Py_ssize_t groups = up(p.dim, t.cols) // t.cols, i, j, n, start = 0
    cdef Py_ssize_t first = item % groups * t.cols, column = item // groups * ITEM_COLUMNS
    cdef Py_ssize_t width = min(ITEM_COLUMNS, p.width - column)
    cdef Py_ssize_t bytes = min(<Py_ssize_t> t.cols, p.dim - first) * t.real
    cdef int cols = t.lanes if p.dim - first <= t.lanes else t.cols
    cdef char *sums = memory + t.key_tile * t.cols * t.real
    memset(memory, 0, (t.key_tile + ITEM_COLUMNS) * t.cols * t.real)
    while start < p.rows:
        n = min(<Py_ssize_t> t.key_tile, p.rows - start)
        for j in range(n):
            memcpy(memory + j * cols * t.real, p.x + (start + j) * p.x_row + first * t.real,
                   bytes)
        t.accumulate(memory, cols, p.grad + start * p.grad_row + column * t.real,
                     p.grad_row // t.real, <int> n, width, sums)
        start += n
    for i in range(width):
        memcpy(p.out + (column + i) * p.out_row + first * t.real, sums + i * cols * t.real,
               bytes)


cdef int run_gram(const Gram *p, int threads) except -1 nogil:
    """Compute every row of out."""
    cdef const rv_softmax_tiles *t = p.tiles
    cdef Py_ssize_t count = (up(p.dim, t.cols) // t.cols
                             * (up(p.width, ITEM_COLUMNS) // ITEM_COLUMNS))
    cdef Py_ssize_t size = up((t.key_tile + ITEM_COLUMNS) * t.cols * t.real, 64)
    cdef double work = <double> p.rows * p.dim * p.width
    cdef Py_ssize_t slab, start = 0, stop, i
    cdef char *memory
    cdef char *base
    threads = 1 if work < SMALL_WORK else team_size(threads, count)
    memory = <char *> malloc(threads * size + 64)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for the tiles")
    base = <char *> up(<Py_ssize_t> memory, 64)
    slab = threads + <Py_ssize_t> (count * (SLAB_WORK / max(work, 1.0)))
    try:
        while start < count:
            stop = min(count, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                gram_item(p, i, base + thread_index() * size)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0

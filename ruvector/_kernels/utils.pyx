"""Row-wise vector utilities: the compiled twin of fallback/utils.py.

Arguments and results are those of the NumPy twin, whose docstrings describe them. Softmax,
norms, cosines and columns read their arrays once or twice, are bound by memory and run in
the calling thread. Distances are

    |x_i - x_j| = sqrt(sum over d of (x_i[d] - x_j[d])^2),

n^2 d / 2 subtractions and multiply-adds, in tiles of TILE rows by TILE rows that any thread
may take: the same operations in the same order for a pair wherever it is computed. float64
rows are summed in float64; float32 rows in float32 over a few elements at a time and in
float64 from there. A pair whose sum leaves the range where that is right is summed again,
in float64 and scaled. Memory: a copy of x, and TILE^2 sums a thread.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cpython.exc cimport PyErr_CheckSignals

from ruvector._kernels._dispatch cimport RV_F32, RV_F64, rv_row_tiles, tiles
from ruvector._kernels._openmp cimport team_size, thread_index

cnp.import_array()

# A float64 sum of squares below or above these is taken again over elements times 2^600 or
# 2^-600, which bring every magnitude into range. The squares of float32 are always in it.
cdef double LOW = 1e-280
cdef double HIGH = 1e280
cdef double UP = 2.0 ** 600
cdef double DOWN = 2.0 ** -600

# Rows that one pass over the columns keeps its running sums in registers for.
cdef Py_ssize_t COLUMN_ROWS = 32

# Rows of a tile of distances, a multiple of every panel; the part of d that a tile sums at a
# time, so that the panels of one step stay in the second-level cache.
cdef Py_ssize_t TILE = 64
cdef Py_ssize_t DEPTH = 256
# Multiply-adds that are too few for threads, and that run between two signal checks.
cdef double SMALL_WORK = 1e6
cdef double SLAB_WORK = 1e10


cdef struct Rows:
    # A matrix: the address of its first row, rows `stride` bytes apart.
    const rv_row_tiles *tiles
    char *first
    Py_ssize_t count, d, stride


cdef struct Panels:
    # What every tile of distances reads, x also in `count` panels, and what it writes.
    Rows x
    Rows out
    Py_ssize_t count
    char *panels


cdef Rows rows_of(cnp.ndarray matrix):
    cdef int number = cnp.PyArray_TYPE(matrix)
    cdef Rows rows
    if number == cnp.NPY_FLOAT32:
        rows.tiles = tiles().rows[<int> RV_F32]
    elif number == cnp.NPY_FLOAT64:
        rows.tiles = tiles().rows[<int> RV_F64]
    else:
        raise TypeError(f"no kernel for arrays of {matrix.dtype}")
    rows.first = <char *> cnp.PyArray_DATA(matrix)
    rows.count, rows.d = cnp.PyArray_DIM(matrix, 0), cnp.PyArray_DIM(matrix, 1)
    rows.stride = rows.d * rows.tiles.real
    return rows


cdef inline char *row(const Rows *x, Py_ssize_t i) noexcept nogil:
    return x.first + i * x.stride


cdef inline void put(const Rows *x, char *values, Py_ssize_t i, double value) noexcept nogil:
    """Round a double to element i of an array of the rows' type."""
    if x.tiles.real == sizeof(double):
        (<double *> values)[i] = value
    else:
        (<float *> values)[i] = <float> value


cdef inline double scale_for(const Rows *x, double squares) noexcept nogil:
    """The factor that brings rows with this sum of squares into range."""
    if x.tiles.real == sizeof(float):
        return 1.0
    return UP if squares < LOW else DOWN if squares > HIGH else 1.0


cdef double norm(const Rows *x, Py_ssize_t i, double *scale) noexcept nogil:
    """Norm of row i times `scale`, a power of two that keeps it in range."""
    cdef double squares = x.tiles.squares(row(x, i), x.d, 1.0)
    scale[0] = scale_for(x, squares)
    if scale[0] != 1.0:
        squares = x.tiles.squares(row(x, i), x.d, scale[0])
    return sqrt(squares)


cdef bint has_zero_row(const Rows *x) noexcept nogil:
    cdef Py_ssize_t start = min(x.d, <Py_ssize_t> x.tiles.panel), i
    cdef double scale
    for i in range(x.count):
        # Most rows show that they are not zero in their first few elements.
        if x.tiles.squares(row(x, i), start, 1.0) == 0 and norm(x, i, &scale) == 0:
            return True
    return False


def softmax(cnp.ndarray x not None, double temperature, cnp.ndarray out not None):
    """Write ``exp((x - max) / temperature)`` over its sum, row by row; works in place."""
    cdef Rows rows = rows_of(x), result = rows_of(out)
    cdef Py_ssize_t i
    if rows.d == 0:
        return
    with nogil:
        for i in range(rows.count):
            rows.tiles.softmax(row(&rows, i), rows.d, temperature, row(&result, i))


def l2_norm(cnp.ndarray x not None, cnp.ndarray out not None):
    """Write the Euclidean norm of every row to ``out`` ``(rows,)``."""
    cdef Rows rows = rows_of(x)
    cdef char *result = <char *> cnp.PyArray_DATA(out)
    cdef double length, scale
    cdef Py_ssize_t i
    with nogil:
        for i in range(rows.count):
            length = norm(&rows, i, &scale)
            put(&rows, result, i, length / scale)


cdef bint normalize_rows(const Rows *x, const Rows *out) noexcept nogil:
    cdef double length, scale
    cdef Py_ssize_t i
    if has_zero_row(x):
        return False
    for i in range(x.count):
        length = norm(x, i, &scale)
        x.tiles.divide(row(x, i), x.d, scale, length, row(out, i))
    return True


def normalize(cnp.ndarray x not None, cnp.ndarray out not None):
    """Write every row divided by its Euclidean norm; works in place."""
    cdef Rows rows = rows_of(x), result = rows_of(out)
    cdef bint done
    with nogil:
        done = normalize_rows(&rows, &result)
    return done


cdef double cosine(const Rows *a, Py_ssize_t i, const Rows *b, Py_ssize_t j) noexcept nogil:
    cdef double sums[3]
    cdef double scale_a, scale_b, value
    a.tiles.products(row(a, i), row(b, j), a.d, 1.0, 1.0, sums)
    scale_a, scale_b = scale_for(a, sums[0]), scale_for(b, sums[1])
    if scale_a != 1.0 or scale_b != 1.0:
        a.tiles.products(row(a, i), row(b, j), a.d, scale_a, scale_b, sums)
    value = sums[2] / (sqrt(sums[0]) * sqrt(sums[1]))
    return 1.0 if value > 1.0 else -1.0 if value < -1.0 else value


cdef bint compare_rows(const Rows *a, const Rows *b, char *out,
                       Py_ssize_t count) noexcept nogil:
    cdef bint many_a = a.count != 1, many_b = b.count != 1
    cdef Py_ssize_t i
    if has_zero_row(a) or has_zero_row(b):
        return False
    for i in range(count):
        put(a, out, i, cosine(a, i if many_a else 0, b, i if many_b else 0))
    return True


def cosine_similarity(cnp.ndarray a not None, cnp.ndarray b not None,
                      cnp.ndarray out not None):
    """Write ``a_i.b_i / (|a_i| |b_i|)`` to ``out`` ``(rows,)``, kept within [-1, 1]."""
    cdef Rows left = rows_of(a), right = rows_of(b)
    cdef char *result = <char *> cnp.PyArray_DATA(out)
    cdef Py_ssize_t count = cnp.PyArray_DIM(out, 0)
    cdef bint done
    with nogil:
        done = compare_rows(&left, &right, result, count)
    return done


cdef void moments(const Rows *x, double epsilon, double *mean, double *factor,
                  double *sums) noexcept nogil:
    """Mean of every column, from the first row on, and one over its deviation."""
    cdef Py_ssize_t i = 0, j
    for j in range(x.d):
        mean[j] = ((<double *> x.first)[j] if x.tiles.real == sizeof(double)
                   else (<float *> x.first)[j])
        sums[j] = factor[j] = 0
    while i < x.count:
        x.tiles.column_sums(row(x, i), <int> min(COLUMN_ROWS, x.count - i), x.d, mean, sums)
        i += COLUMN_ROWS
    for j in range(x.d):
        mean[j] += sums[j] / x.count
    i = 0
    while i < x.count:
        x.tiles.column_squares(row(x, i), <int> min(COLUMN_ROWS, x.count - i), x.d, mean,
                               factor)
        i += COLUMN_ROWS
    for j in range(x.d):
        factor[j] = 1.0 / sqrt(factor[j] / x.count + epsilon)


def batch_normalize(cnp.ndarray x not None, double epsilon, cnp.ndarray out not None):
    """Write ``(x - mean) / sqrt(variance + epsilon)`` of every column; works in place."""
    cdef Rows rows = rows_of(x), result = rows_of(out)
    cdef Py_ssize_t width = rows.d + rows.tiles.panel, i
    cdef double *mean
    if rows.count == 0 or rows.d == 0:
        return
    mean = <double *> malloc(3 * width * sizeof(double))
    if mean == NULL:
        raise MemoryError("no memory for the columns' moments")
    with nogil:
        moments(&rows, epsilon, mean, mean + width, mean + 2 * width)
        for i in range(rows.count):
            rows.tiles.standardize(row(&rows, i), rows.d, mean, mean + width,
                                   row(&result, i))
    free(mean)


cdef double distance(const Rows *x, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    cdef double squares = x.tiles.distance(row(x, i), row(x, j), x.d, 1.0)
    cdef double scale = scale_for(x, squares)
    if scale != 1.0:
        squares = x.tiles.distance(row(x, i), row(x, j), x.d, scale)
    return sqrt(squares) / scale


cdef void store(const Panels *p, const double *sums, Py_ssize_t i,
                Py_ssize_t j) noexcept nogil:
    """Write the distances of the panels from rows i and j on, and their mirror image."""
    cdef const rv_row_tiles *t = p.x.tiles
    cdef int rows = <int> min(<Py_ssize_t> t.panel, p.x.count - i)
    cdef int cols = <int> min(<Py_ssize_t> t.panel, p.x.count - j)
    cdef Py_ssize_t r, c
    cdef double length
    if not t.store_distances(sums, TILE, rows, cols, row(&p.out, i) + j * t.real,
                             row(&p.out, j) + i * t.real, p.out.d):
        return
    for r in range(rows):
        for c in range(cols):
            # A row's distance from itself is exact.
            if i + r != j + c and not t.low <= sums[r * TILE + c] <= t.high:
                length = distance(&p.x, i + r, j + c)
                put(&p.x, row(&p.out, i + r), j + c, length)
                put(&p.x, row(&p.out, j + c), i + r, length)


cdef void measure_tile(const Panels *p, Py_ssize_t tile_i, Py_ssize_t tile_j,
                       double *sums) noexcept nogil:
    """Write the distances between two tiles of rows, tile_i <= tile_j, and their mirror."""
    cdef const rv_row_tiles *t = p.x.tiles
    cdef Py_ssize_t step = TILE // t.panel, d = p.x.d, start = 0, depth, i, j
    cdef Py_ssize_t first_i = tile_i * step, first_j = tile_j * step
    cdef Py_ssize_t stop_i = min(first_i + step, p.count), stop_j = min(first_j + step, p.count)
    memset(sums, 0, TILE * TILE * sizeof(double))
    while start < d:
        depth = min(DEPTH, d - start)
        for j in range(first_j, stop_j):
            for i in range(first_i, min(stop_i, j + 1)):
                t.add_distances(p.panels + (i * d + start) * t.panel * t.real,
                                p.panels + (j * d + start) * t.panel * t.real, depth,
                                sums + ((i - first_i) * TILE + j - first_j) * t.panel, TILE)
        start += depth
    for j in range(first_j, stop_j):
        for i in range(first_i, min(stop_i, j + 1)):
            store(p, sums + ((i - first_i) * TILE + j - first_j) * t.panel, i * t.panel,
                  j * t.panel)


cdef int measure_all(Panels *p, int threads) except -1 nogil:
    """Pack the rows into panels, then measure every tile on and above the diagonal."""
    cdef const rv_row_tiles *t = p.x.tiles
    cdef Py_ssize_t side = (p.x.count + TILE - 1) // TILE
    cdef Py_ssize_t items = side * side, start = 0, stop, slab, i
    cdef double work = 0.5 * p.x.count * p.x.count * p.x.d
    cdef Py_ssize_t size = p.count * t.panel * p.x.d
    cdef char *memory
    cdef double *sums
    threads = 1 if work < SMALL_WORK else team_size(threads, items)
    slab = max(<Py_ssize_t> threads, <Py_ssize_t> (items * (SLAB_WORK / max(work, 1.0))))
    memory = <char *> malloc(size * t.real + threads * TILE * TILE * sizeof(double) + 64)
    if memory == NULL:
        with gil:
            raise MemoryError("no memory for a copy of the vectors")
    try:
        sums = <double *> ((<Py_ssize_t> memory + 63) & ~<Py_ssize_t> 63)
        p.panels = <char *> (sums + threads * TILE * TILE)
        for i in prange(p.count, num_threads=threads, use_threads_if=threads > 1):
            t.pack_panel(row(&p.x, i * t.panel),
                         min(<Py_ssize_t> t.panel, p.x.count - i * t.panel), p.x.d,
                         p.panels + i * t.panel * p.x.d * t.real)
        while start < items:
            stop = min(items, start + slab)
            for i in prange(start, stop, schedule="dynamic", num_threads=threads,
                            use_threads_if=threads > 1):
                if i // side <= i % side:
                    measure_tile(p, i // side, i % side,
                                 sums + thread_index() * TILE * TILE)
            start = stop
            with gil:
                PyErr_CheckSignals()
    finally:
        free(memory)
    return 0


def pairwise_distances(cnp.ndarray x not None, cnp.ndarray out not None, int threads):
    """Write the Euclidean distance of every pair of rows to ``out`` ``(rows, rows)``."""
    cdef Panels p
    p.x, p.out = rows_of(x), rows_of(out)
    p.count = (p.x.count + p.x.tiles.panel - 1) // p.x.tiles.panel
    with nogil:
        measure_all(&p, threads)

"""Steps of optimisers in place: the compiled twin of fallback/optim.py.

Arguments and results are those of the NumPy twin; spec.py has the formulas. All arrays of a
call are cut into pieces of CHUNK numbers, which threads take in one parallel loop, so that a
step over many small arrays starts threads once. A number's result depends on nothing but its
own place, and sums are merged in the order of the pieces.

A step reads and writes every array once (Adam: 16 bytes read and 12 written for a float) and
is bound by memory. It does not look at signals on its way: half a step could not be undone.
"""

cimport numpy as cnp
from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from ruvector._kernels._dispatch cimport (
    RV_F32, RV_F64, rv_adam, rv_optim_tiles, rv_row_tiles, rv_sgd, tiles,
)
from ruvector._kernels._openmp cimport team_size

import numpy as np

cnp.import_array()

cdef Py_ssize_t CHUNK = 1 << 14
# Numbers below which a second thread costs more than it saves.
cdef Py_ssize_t SMALL_WORK = 1 << 16

# A sum of squares outside of these has lost something to overflow or underflow in float64; it
# is taken again over numbers times a power of two. The squares of float32 are always inside.
cdef double LOW = 1e-280
cdef double HIGH = 1e280
cdef double UP = 2.0 ** 600
cdef double DOWN = 2.0 ** -600


cdef struct Leaf:
    # One parameter: up to five arrays of n numbers, and the number of its first piece.
    const rv_optim_tiles *optim
    const rv_row_tiles *rows
    char *arrays[5]
    Py_ssize_t n, first
    int real


cdef struct Work:
    Leaf *leaves
    Py_ssize_t count, chunks
    int threads


cdef int set_leaf(Leaf *leaf, cnp.ndarray array) except -1:
    cdef int number = cnp.PyArray_TYPE(array), dtype
    if number == cnp.NPY_FLOAT32:
        dtype = RV_F32
    elif number == cnp.NPY_FLOAT64:
        dtype = RV_F64
    else:
        raise TypeError(f"no kernel for arrays of {array.dtype}")
    leaf.optim, leaf.rows = tiles().optim[dtype], tiles().rows[dtype]
    leaf.n, leaf.real = cnp.PyArray_SIZE(array), leaf.rows.real
    return 0


cdef Work work_of(tuple lists, int threads) except *:
    """Lay the lists side by side; what is None in their place stays NULL."""
    cdef Work work
    cdef Leaf *leaf
    cdef Py_ssize_t numbers = 0, i, j
    work.count, work.chunks = len(lists[0]), 0
    work.leaves = <Leaf *> malloc((work.count + 1) * sizeof(Leaf))
    if work.leaves == NULL:
        raise MemoryError("no memory for a list of the parameters")
    try:
        for i in range(work.count):
            leaf = work.leaves + i
            set_leaf(leaf, lists[0][i])
            for j in range(5):
                leaf.arrays[j] = NULL
                if j < len(lists) and lists[j] is not None:
                    leaf.arrays[j] = <char *> cnp.PyArray_DATA(<cnp.ndarray?> lists[j][i])
            leaf.first = work.chunks
            work.chunks += (leaf.n + CHUNK - 1) // CHUNK
            numbers += leaf.n
    except BaseException:
        free(work.leaves)
        raise
    work.threads = 1 if numbers < SMALL_WORK else team_size(threads, work.chunks)
    return work


cdef inline const Leaf *piece(const Work *work, Py_ssize_t chunk, Py_ssize_t *start,
                              Py_ssize_t *n) noexcept nogil:
    """The leaf of a piece, and which of its numbers are in the piece."""
    cdef Py_ssize_t low = 0, high = work.count, middle
    while high - low > 1:
        middle = (low + high) // 2
        if work.leaves[middle].first <= chunk:
            low = middle
        else:
            high = middle
    start[0] = (chunk - work.leaves[low].first) * CHUNK
    n[0] = min(CHUNK, work.leaves[low].n - start[0])
    return work.leaves + low


cdef inline char *at(const Leaf *leaf, int which, Py_ssize_t start) noexcept nogil:
    return NULL if leaf.arrays[which] == NULL else leaf.arrays[which] + start * leaf.real


cdef void sgd_piece(const Work *work, Py_ssize_t chunk, const rv_sgd *options) noexcept nogil:
    cdef Py_ssize_t start, n
    cdef const Leaf *leaf = piece(work, chunk, &start, &n)
    leaf.optim.sgd(at(leaf, 0, start), at(leaf, 1, start), at(leaf, 2, start), n, options)


cdef void adam_piece(const Work *work, Py_ssize_t chunk,
                     const rv_adam *options) noexcept nogil:
    cdef Py_ssize_t start, n
    cdef const Leaf *leaf = piece(work, chunk, &start, &n)
    leaf.optim.adam(at(leaf, 0, start), at(leaf, 1, start), at(leaf, 2, start),
                    at(leaf, 3, start), at(leaf, 4, start), n, options)


cdef double squares_of_piece(const Work *work, Py_ssize_t chunk,
                             double scale) noexcept nogil:
    cdef Py_ssize_t start, n
    cdef const Leaf *leaf = piece(work, chunk, &start, &n)
    return leaf.rows.squares(at(leaf, 0, start), n, scale)


cdef void scale_piece(const Work *work, Py_ssize_t chunk, double factor) noexcept nogil:
    cdef Py_ssize_t start, n
    cdef const Leaf *leaf = piece(work, chunk, &start, &n)
    cdef char *x = at(leaf, 0, start)
    leaf.rows.divide(x, n, factor, 1.0, x)


def sgd(list params not None, list gradients not None, list buffers, spec not None,
        int threads):
    """Take a step of gradient descent: update parameters and momentum buffers in place."""
    cdef rv_sgd options
    cdef Work work
    cdef Py_ssize_t i
    options.rate, options.decay = spec.rate, spec.decay
    options.keep, options.share = spec.keep, spec.share
    options.momentum, options.nesterov = spec.momentum, spec.nesterov
    work = work_of((params, gradients, buffers), threads)
    with nogil:
        for i in prange(work.chunks, schedule="static", num_threads=work.threads,
                        use_threads_if=work.threads > 1):
            sgd_piece(&work, i, &options)
    free(work.leaves)


def adam(list params not None, list gradients not None, list first not None,
         list second not None, list peaks, spec not None, int threads):
    """Take a step of Adam: update parameters and moments in place."""
    cdef rv_adam options
    cdef Work work
    cdef Py_ssize_t i
    options.rate, options.root = spec.corrected_rate, spec.root
    options.beta1, options.beta2, options.epsilon = spec.beta1, spec.beta2, spec.epsilon
    options.decay, options.shrink = spec.decay, 1.0 - spec.shrinkage
    work = work_of((params, gradients, first, second, peaks), threads)
    with nogil:
        for i in prange(work.chunks, schedule="static", num_threads=work.threads,
                        use_threads_if=work.threads > 1):
            adam_piece(&work, i, &options)
    free(work.leaves)


cdef double sum_of_squares(const Work *work, double scale, double *sums) noexcept nogil:
    cdef double total = 0
    cdef Py_ssize_t i
    for i in prange(work.chunks, schedule="static", num_threads=work.threads,
                    use_threads_if=work.threads > 1):
        sums[i] = squares_of_piece(work, i, scale)
    # Not a reduction, whose order would depend on the threads.
    for i in range(work.chunks):
        total = total + sums[i]
    return total


def norm(list arrays not None, int threads):
    """Return the Euclidean norm of all the numbers together."""
    cdef Work work = work_of((arrays,), threads)
    cdef double total, scale = 1.0
    cdef double *sums = <double *> malloc((work.chunks + 1) * sizeof(double))
    if sums == NULL:
        free(work.leaves)
        raise MemoryError("no memory for the sums of squares")
    with nogil:
        total = sum_of_squares(&work, scale, sums)
        if total < LOW or total > HIGH:
            scale = UP if total < LOW else DOWN
            total = sum_of_squares(&work, scale, sums)
    free(work.leaves)
    free(sums)
    return sqrt(total) / scale


def scale(list arrays not None, double factor, int threads):
    """Multiply all the numbers by a factor, in place."""
    cdef Work work = work_of((arrays,), threads)
    cdef Py_ssize_t i
    with nogil:
        for i in prange(work.chunks, schedule="static", num_threads=work.threads,
                        use_threads_if=work.threads > 1):
            scale_piece(&work, i, factor)
    free(work.leaves)


def bounds(list arrays not None):
    """Return the addresses of every array's first byte and of the one behind its last."""
    cdef cnp.ndarray found = np.empty((len(arrays), 2), np.int64), array
    cdef int64_t *row = <int64_t *> cnp.PyArray_DATA(found)
    cdef Py_ssize_t reach
    cdef int axis
    for array in arrays:
        row[0] = row[1] = <int64_t> <Py_ssize_t> cnp.PyArray_DATA(array)
        if cnp.PyArray_SIZE(array):
            for axis in range(cnp.PyArray_NDIM(array)):
                reach = cnp.PyArray_STRIDE(array, axis) * (cnp.PyArray_DIM(array, axis) - 1)
                row[reach > 0] += reach
            row[1] += cnp.PyArray_ITEMSIZE(array)
        row += 2
    return found

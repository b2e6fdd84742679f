"""The transpose of rows times rows, as the nogil driver sees it."""

from ruvector._kernels._dispatch cimport rv_softmax_tiles


cdef struct Gram:
    # out (width, dim) = grad^T x over `rows` rows of reals; strides of rows in bytes.
    const rv_softmax_tiles *tiles
    Py_ssize_t rows, dim, width
    const char *x
    const char *grad
    char *out
    Py_ssize_t x_row, grad_row, out_row


cdef int run_gram(const Gram *p, int threads) except -1 nogil

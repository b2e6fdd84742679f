"""Rows times a matrix, as the nogil driver sees it."""

from ruvector._kernels._dispatch cimport rv_table


cdef struct Projection:
    # out = x weight^T; strides of rows in bytes. x is of storage type `dtype`, weight and out
    # of `real` (RV_F32 or RV_F64), which is `dtype` itself where that is computed in.
    const rv_table *table
    int dtype, real
    Py_ssize_t rows, dim, width
    const char *x
    const char *weight
    char *out
    Py_ssize_t x_row, weight_row, out_row


cdef int run_projection(const Projection *p, int threads) except -1 nogil

"""Features of edges from nodes to themselves, as the nogil drivers see them."""

from libc.stdint cimport int64_t


cdef struct Loops:
    # Rows of the graph as it was, int64 indices; rows of features in bytes, of `real` bytes a
    # number. Receivers below `nodes` have a new edge to themselves.
    Py_ssize_t receivers, nodes, width, real
    const int64_t *indptr
    const int64_t *indices
    const char *x
    char *out
    Py_ssize_t x_row, out_row


cdef int fill_loops(const Loops *p) except -1 nogil
cdef int fold_loops(const Loops *p) except -1 nogil
